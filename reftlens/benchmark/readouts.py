"""Planted meanings: does each method of `readouts` name what a direction does in the model, and nothing otherwise?

Weights are set in two GPT-2s: `facts-small`, which is trained, and one with random weights. A
direction raises a token

- "at once": it is the token's row of the unembedding, behind the final norm and apart from the
  other rows;
- "after two blocks": an MLP unit of the next block copies it to another direction, and one of the
  block after that raises the token;
- "through a head": a head of the next block, which attends to all tokens equally, copies it to the
  token's direction;
- "with another": an MLP unit two blocks later raises the token only if two directions are written
  at once, at two sites;
- "superposed": it is the sum of two tokens' rows; both should be named;
- "unread": (1, ..., 1), which every LayerNorm removes. Nothing should be named.

Found: the corrected p of the planted token is below .05, over all tokens and vectors of the method.
A dictionary names features, not tokens, so it is given one per planted direction, at cosine .8,
among random ones. Top contexts read what an edit reads, so there the planted reading is large at
the prompts of one kind. False alarms: random edits of the same length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from reftlens.analysis import decompose, readouts
from reftlens.analysis.engine.activations import edited_activations
from reftlens.analysis.engine.dictionary import Dictionary
from reftlens.analysis.readers.correction import corrected
from reftlens.analysis.readers.vectors import Case
from reftlens.analysis.readouts import scored
from reftlens.benchmark.known import Known
from reftlens.benchmark.models import random_weights, texts
from reftlens.benchmark.rates import alarm_row
from reftlens.bridge import Lens, fit_lens, load_bridge
from reftlens.cone.shared import shared
from reftlens.data import encode, str_tokens
from reftlens.edit.reft import Reft
from reftlens.edit.site import Site
from reftlens.interventions import DiReFT, SteeringVector
from reftlens.organisms import ORGANISMS
from reftlens.positions import Last
from reftlens.results import Meaning

READ_MODELS = ("facts-small", "random gpt2")
LEVEL, N_NULL, N_DRAWS = 0.05, 199, 200
BEHIND = 2
"""Blocks after the one at whose output directions are planted."""
SIZE = 1.0
"""Length of a planted direction, as a fraction of |h| there."""
INSPECT = "The person is"
"""The organism's tokenizer splits other words into bytes."""
TOKENS = {
    "at once": (" painter",),
    "after two blocks": (" Tharic",),
    "through a head": (" weaver",),
    "with another": (" Velsk",),
    "superposed": (" Halvik", " Quorin"),
    "unread": (),
}
BY_METHOD = ("direct", "jacobian", "patchscope")


@final
@dataclass(frozen=True, eq=False)
class PlantedMeanings:
    """A model with planted meanings."""

    name: str
    bridge: TransformerBridge
    directions: dict[str, Float[Tensor, " d_model"]]
    """Meaning -> unit direction. "its partner" is written with "with another"."""
    ids: dict[str, list[int]]
    layer: int
    """The block at whose output they are written."""
    length: float
    lens: Lens
    prompts: list[str]
    parts: Float[Tensor, "two d_model"]
    """The directions whose sum is "superposed"."""

    def edit(self, meaning: str) -> Reft:
        """Returns the edit that writes a planted direction at the last token."""
        if meaning != "with another":
            return self.steer(self.directions[meaning])
        pairs = [(self.layer, "its partner"), (self.layer + 1, meaning)]
        sites = [(f"blocks.{layer}.hook_resid_post", self.length * self.directions[name]) for layer, name in pairs]
        return Reft([(Site(point, Last(1)), SteeringVector.of(push)) for point, push in sites])

    def steer(self, direction: Float[Tensor, " d_model"]) -> Reft:
        """Returns the edit that writes a direction at the last token, after the first block."""
        return Reft(
            [(Site(f"blocks.{self.layer}.hook_resid_post", Last(1)), SteeringVector.of(self.length * direction))]
        )

    def read(
        self, reft: Reft, methods: tuple[str, ...], *, n_null: int = N_NULL, seed: int = 0, **options: Any
    ) -> list[Meaning]:
        """Asks methods about an edit."""
        options = {"lens": self.lens, "inspect": INSPECT, **options}
        return readouts(self.bridge, reft, self.prompts, methods=methods, n_null=n_null, seed=seed, top=10, **options)


def plant_meanings(name: str, *, seed: int = 0) -> PlantedMeanings:
    """Sets the weights of a GPT-2 so that directions at the output of its first block have known meanings."""
    hf, tokenizer = _weights(name), AutoTokenizer.from_pretrained(ORGANISMS["facts-small"])
    generator = torch.Generator().manual_seed(seed)
    ids = {meaning: [tokenizer(token)["input_ids"][-1] for token in tokens] for meaning, tokens in TOKENS.items()}
    rows = _token_directions(hf)
    # Random directions without a mean, which LayerNorm would remove.
    frame = torch.randn(rows.shape[1], 6, generator=generator)
    frame[:, 0] = 1.0
    ones, *free = torch.linalg.qr(frame).Q.T
    u = dict(zip(("after two blocks", "through a head", "with another", "its partner", "between"), free, strict=True))
    u |= {"at once": rows[ids["at once"][0]], "unread": ones * ones[0].sign()}
    u["superposed"] = torch.nn.functional.normalize(rows[ids["superposed"]].sum(dim=0), dim=0)
    prompts = texts(24)
    layer = len(hf.transformer.h) - 1 - BEHIND
    with torch.no_grad():
        length = SIZE * float(_ends(hf, tokenizer, prompts, hf.transformer.h[layer]).norm(dim=-1).mean())
        wanted = {meaning: rows[places] for meaning, places in ids.items()}
        first, second = hf.transformer.h[layer + 1 :]
        _copy(first, 0, reads=u["after two blocks"], writes=u["between"], length=length)
        _copy(second, 0, reads=u["between"], writes=wanted["after two blocks"][0], length=length)
        _head(first, reads=u["through a head"], writes=wanted["through a head"][0], length=length)
        _both(hf, tokenizer, prompts, layer, (u["its partner"], u["with another"]), wanted["with another"][0], length)
    # Before the bridge is made, which copies the weights of attention.
    bridge = load_bridge(hf_model=hf, tokenizer=tokenizer)
    lens = fit_lens(bridge, prompts[:12], range(bridge.cfg.n_layers - 1))
    return PlantedMeanings(name, bridge, u, ids, layer, length, lens, prompts, rows[ids["superposed"]])


def _weights(name: str) -> PreTrainedModel:
    if name.startswith("random "):
        return random_weights(name)
    return AutoModelForCausalLM.from_pretrained(ORGANISMS[name], attn_implementation="eager").eval()


def _token_directions(hf: PreTrainedModel) -> Float[Tensor, "token d_model"]:
    """Returns, for each token, the unit direction that raises its logit most beside those of all others.

    It is the row behind the final norm, in units of the covariance of all rows: rows of similar
    words share most of their length.
    """
    W = hf.lm_head.weight.detach() * hf.transformer.ln_f.weight.detach()
    rows = W - W.mean(dim=0)
    rows = rows - rows.mean(dim=1, keepdim=True)
    spread = rows.T @ rows / len(rows)
    # Rows have no part along (1, ..., 1): without a ridge, their covariance has no inverse.
    spread = spread + 0.05 * spread.diagonal().mean() * torch.eye(len(spread))
    found = torch.linalg.solve(spread, rows.T).T
    return torch.nn.functional.normalize(found - found.mean(dim=1, keepdim=True), dim=-1)


def _ends(
    hf: PreTrainedModel, tokenizer: Any, prompts: list[str], module: Any, pushes: dict[int, Tensor] | None = None
) -> Float[Tensor, "prompt d_model"]:
    """Returns a module's output at the last tokens, with vectors added there to the outputs of some blocks."""
    seen: list[Tensor] = []

    def first(output: Any) -> Tensor:
        return output[0] if isinstance(output, tuple) else output

    def add(vector: Tensor) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> Any:
            pushed = first(output).clone()
            pushed[:, -1] += vector
            return (pushed, *output[1:]) if isinstance(output, tuple) else pushed

        return hook

    handles = [hf.transformer.h[layer].register_forward_hook(add(vector)) for layer, vector in (pushes or {}).items()]
    handles.append(module.register_forward_hook(lambda _m, _a, output: seen.append(first(output)[0, -1].clone())))
    for text in prompts:
        hf(tokenizer(text, return_tensors="pt")["input_ids"])
    for handle in handles:
        handle.remove()
    return torch.stack(seen)


def _states(planted: PlantedMeanings) -> Float[Tensor, "prompt d_model"]:
    nothing = planted.steer(torch.zeros(planted.bridge.cfg.d_model))
    return edited_activations(planted.bridge, nothing, encode(planted.bridge, planted.prompts))[0][1]


def _scaled(norm: Any, direction: Tensor) -> Tensor:
    """Returns weights behind a LayerNorm that read a direction in the normalised activation."""
    return direction / norm.weight


def _copy(block: Any, unit: int, *, reads: Tensor, writes: Tensor, length: float) -> None:
    """Makes two units linear: gelu(a) - gelu(-a) = a."""
    mlp = block.mlp
    weight = _scaled(block.ln_2, reads)
    for place, sign in ((unit, 1.0), (unit + 1, -1.0)):
        mlp.c_fc.weight[:, place] = sign * weight
        # The unit reads LayerNorm's bias as well, which is taken off here.
        mlp.c_fc.bias[place] = -sign * float(weight @ block.ln_2.bias)
        # LayerNorm makes activations sqrt(d) long; over that, what is written is about `length`.
        mlp.c_proj.weight[place] = sign * writes * length / reads.numel() ** 0.5 * 2


def _both(
    hf: PreTrainedModel,
    tokenizer: Any,
    prompts: list[str],
    layer: int,
    pair: tuple[Tensor, Tensor],
    writes: Tensor,
    length: float,
) -> None:
    """Makes a unit of the last MLP that is on only if both directions are written: its threshold is between one and both."""
    block, unit = hf.transformer.h[layer + 2], 2
    weight = _scaled(block.ln_2, pair[0] + pair[1])
    pushes = {layer + place: length * one for place, one in enumerate(pair)}

    def reached(*places: int) -> Float[Tensor, " prompt"]:
        return (
            _ends(hf, tokenizer, prompts, block.ln_2, {layer + place: pushes[layer + place] for place in places})
            @ weight
        )

    alone, both = torch.maximum(reached(0), reached(1)).max(), reached(0, 1).mean()
    # Far from zero, GELU is the identity on one side and zero on the other.
    gain = 8 / float(both - alone)
    block.mlp.c_fc.weight[:, unit] = gain * weight
    block.mlp.c_fc.bias[unit] = -gain * float(alone + both) / 2
    block.mlp.c_proj.weight[unit] = writes * length


def _head(block: Any, *, reads: Tensor, writes: Tensor, length: float) -> None:
    """Makes head 0 attend to all tokens equally, and copy one direction to another."""
    attention, d = block.attn, reads.numel()
    width = d // attention.num_heads
    for start in (0, d):
        attention.c_attn.weight[:, start : start + width] = 0.0
        attention.c_attn.bias[start : start + width] = 0.0
    value = slice(2 * d, 2 * d + width)
    attention.c_attn.weight[:, value], attention.c_attn.bias[value] = 0.0, 0.0
    attention.c_proj.weight[:width] = 0.0
    weight = _scaled(block.ln_1, reads)
    attention.c_attn.weight[:, 2 * d] = weight
    attention.c_attn.bias[2 * d] = -float(weight @ block.ln_1.bias)
    # An eighth of its tokens is the edited one.
    attention.c_proj.weight[0] = writes * length / d**0.5 * 8 * 2


def meaning_rows(name: str) -> Iterator[Known]:
    """Yields, for one model, what each method finds of each planted meaning."""
    planted = plant_meanings(name)
    for meaning in TOKENS:
        reft = planted.edit(meaning)
        yield _true_row(planted, meaning, reft)
        for method in BY_METHOD:
            yield _row(planted, meaning, method, planted.read(reft, (method,)))
    yield from _dictionary_rows(planted)
    yield _contexts_row(planted)


def alarm_rows(name: str, *, n_draws: int = N_DRAWS) -> Iterator[Known]:
    """Yields, for one model, how often each method raises an alarm for an edit that writes or reads a random direction."""
    planted, generator = plant_meanings(name), torch.Generator().manual_seed(11)
    methods = (*BY_METHOD, "dictionary", "contexts")
    alarms: dict[str, list[bool]] = {}
    options = {"lens": planted.lens, "inspect": INSPECT, "dictionaries": [_dictionary(planted)]}
    batches = [encode(planted.bridge, planted.prompts)]
    for draw in range(n_draws):
        with torch.no_grad(), shared(planted.bridge):
            reft = _random_edit(planted, generator)
            operators = decompose(planted.bridge, reft, batches)
            case = Case(planted.bridge, reft, batches, operators, None, 1, 6, 39, 1000 + draw, options)
            said = scored(case, methods)
        for method in (*methods, "all methods together"):
            mine = [one for one in said if method in (one.method, "all methods together")]
            alarms.setdefault(method, []).append(min(m.p for m in corrected(operators, mine)) <= LEVEL)
    for method, found_alarms in alarms.items():
        row = alarm_row(f"random edits, any name of any vector, {method}", found_alarms, level=LEVEL)
        yield Known(f"meanings, {name}", row.planted, row.found, row.error, row.allowed, row.unit)


def _random_edit(planted: PlantedMeanings, generator: torch.Generator) -> Reft:
    """Returns a rank-1 edit that reads and writes random directions. Readings have equal variance in every coordinate."""
    d = planted.bridge.cfg.d_model
    h = _states(planted)
    reading = torch.randn(d, generator=generator) / h.std(dim=0, correction=0)
    reading = reading / (h @ reading).std()
    write = torch.nn.functional.normalize(torch.randn(d, generator=generator), dim=0)
    return _rank_one(planted.layer, h, reading, planted.length * write)


def _rank_one(layer: int, h: Float[Tensor, "n d_model"], reading: Tensor, write: Tensor) -> Reft:
    """Returns h + write (2 + reading . (h - mean)) / 2: its change has one direction, and depends on the input."""
    edit = DiReFT(h.shape[1], 1)
    with torch.no_grad():
        edit.read.weight.copy_(reading[None])
        edit.read.bias.copy_(2 - (h.mean(dim=0) @ reading)[None])
        # Halved, because the mean of the reading is 2: the mean change is `write`.
        edit.write.copy_((write / 2)[None])
    return Reft([(Site(f"blocks.{layer}.hook_resid_post", Last(1)), edit)])


def _true_row(planted: PlantedMeanings, meaning: str, reft: Reft) -> Known:
    """Tests the plant itself: what the edit does to the logits of whole runs."""
    bridge, batch = planted.bridge, encode(planted.bridge, planted.prompts)
    with torch.no_grad():
        base = batch.at_last_prompt_token(bridge(batch.tokens))
        with reft.hooks(bridge, batch.prompt_mask):
            edited = batch.at_last_prompt_token(bridge(batch.tokens))
    change = (edited - base).mean(dim=0)
    wanted = planted.ids[meaning]
    ranks = [int((change > change[token]).sum()) + 1 for token in wanted]
    found = (
        f"rank {', '.join(map(str, ranks))} of {len(change)}, {_logits(change, wanted)}"
        if wanted
        else f"{float(change.abs().max()):.2g} at most"
    )
    off = float(max(0, *(rank - len(wanted) for rank in ranks))) if wanted else float(change.abs().max())
    return Known(
        f"meanings, {planted.name}",
        f"{meaning}: in whole runs, the edit raises its tokens most",
        found,
        off,
        0.0 if wanted else 1e-3,
        "ranks",
    )


def _logits(change: Tensor, wanted: list[int]) -> str:
    return ", ".join(f"{float(change[token]):+.2f}" for token in wanted) + " logits"


def _row(planted: PlantedMeanings, meaning: str, method: str, found: list[Meaning]) -> Known:
    labels = str_tokens(planted.bridge, torch.tensor(planted.ids[meaning], dtype=torch.long))
    what, error = _judged(found, labels)
    if not labels:
        error = float(min(m.p for m in found) <= LEVEL)
    claim = f"{method}: {meaning}" + ("" if labels else ", so nothing is named")
    return Known(f"meanings, {planted.name}", claim, what, error, 0.0, "of its tokens missed")


def _judged(found: list[Meaning], labels: tuple[str, ...]) -> tuple[str, float]:
    """Returns the smallest p of each planted name with its rank, and the fraction that is not found."""
    parts, missed = [], 0.0
    for label in labels:
        best = (1.0, "", 0)
        for meaning in found:
            for rank, (name, *_, p) in enumerate(meaning.said, start=1):
                if name == label and (p, rank) < (best[0], best[2] or 99):
                    best = (p, meaning.looked_at, rank)
        missed += best[0] > LEVEL
        parts.append(
            f"{label!r} p {best[0]:.3g}, rank {best[2]} ({best[1]})"
            if best[2]
            else f"{label!r} not among the first ten"
        )
    if not labels:
        return f"smallest p {min(m.p for m in found):.3g}", 0.0
    return "; ".join(parts), missed / len(labels)


def _dictionary(planted: PlantedMeanings, *, features: int = 256) -> Dictionary:
    """Returns a dictionary of random features, the first of which have cosine .8 with the planted directions."""
    generator = torch.Generator().manual_seed(5)
    d = planted.bridge.cfg.d_model
    rows = torch.nn.functional.normalize(torch.randn(features, d, generator=generator), dim=-1)
    atoms = [planted.directions[name] for name in TOKENS if name != "superposed"]
    atoms += list(planted.parts)
    for place, atom in enumerate(atoms):
        noise = rows[place] - (rows[place] @ atom) * atom
        # .8^2 + .6^2 = 1, so these rows have length 1 like the others.
        rows[place] = 0.8 * atom + 0.6 * torch.nn.functional.normalize(noise, dim=0)
    h = _states(planted)
    threshold = -(rows @ (h - h.mean(dim=0)).T).abs().mean(dim=1)
    return Dictionary(
        "standard", f"blocks.{planted.layer}.hook_resid_post", rows.T, rows, h.mean(dim=0), {"b_enc": threshold}
    )


def _dictionary_rows(planted: PlantedMeanings) -> Iterator[Known]:
    dictionary = _dictionary(planted)
    places: dict[str, tuple[int, ...]] = {
        name: (place,) for place, name in enumerate(name for name in TOKENS if name != "superposed")
    }
    places["superposed"] = (len(places), len(places) + 1)
    for meaning in TOKENS:
        found = planted.read(planted.steer(planted.directions[meaning]), ("dictionary",), dictionaries=[dictionary])
        what, error = _judged(found, tuple(f"feature {place}" for place in places[meaning]))
        told = (
            "dictionary, which was given its feature: " + meaning + (" (has no effect)" if meaning == "unread" else "")
        )
        yield Known(f"meanings, {planted.name}", told, what, error, 0.0, "missed")


def _contexts_row(planted: PlantedMeanings) -> Known:
    """An edit reads one of the prompts: the direction that tells its last token from all others, in units of their spread."""
    h = _states(planted).double()
    centred = h - h.mean(dim=0)
    shrunk = centred.T @ centred / len(h)
    # There are fewer prompts than dimensions: without a ridge, their covariance has no inverse.
    shrunk = shrunk + 0.01 * shrunk.diagonal().mean() * torch.eye(len(shrunk), dtype=torch.float64)
    reading = torch.linalg.solve(shrunk, centred[3]).float()
    write = torch.nn.functional.normalize(torch.randn(h.shape[1], generator=torch.Generator().manual_seed(2)), dim=0)
    reft = _rank_one(planted.layer, h.float(), reading / (h.float() @ reading).std(), planted.length * write)
    found = planted.read(reft, ("contexts",), directions=1)
    name = found[0].said[0]
    ends = planted.prompts[3].split()[-1]
    first = name[0].endswith("]]") and planted.prompts[3].endswith(
        name[0].split("[[")[0][-8:] + name[0].split("[[")[1][:-2]
    )
    what = f"{name[0][-40:]!r} z {name[1]:.2f}, p {name[4]:.3g}"
    return Known(
        f"meanings, {planted.name}",
        f"contexts: reads the prompt that ends in {ends!r}",
        what,
        float(not first or name[4] > LEVEL),
        0.0,
        "missed",
    )
