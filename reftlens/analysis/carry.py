"""Does an edit work on another model? Carries it there by maps between the two models' states, and says what is lost.

Let h_s and h_t be the states of both models at the same tokens of shared prompts. Two affine maps
are fitted for each site: forward, h_t ~ N h_s + n, and back, h_s ~ M h_t + m. The edit h_s + A h_s
+ c becomes

    h_t + N (A (M h_t + m) + c)

It reads what it read in the source, and writes what it wrote, as far as the maps represent both.
With ridge regression, N and M are fitted by themselves, each with the penalty that does best on a
fifth of the prompts. With "orthogonal" (Procrustes), N is the rotation that does best, and M is its
inverse. The result is a `DiReFT` of the same rank, or a `SteeringVector`: a `Reft` like any other,
to save, test or dissect. LoReFT's W and R do not survive a map that bends lengths, while A and c
do. Where an edit has several sites, the maps are those of the base's states, which earlier sites
have not changed.

Controls: the edit carried by maps that were fitted on shuffled prompts (which know the mean state
of each token's place, and nothing of its content); by the same maps after a random rotation of the
target (same singular values); and not mapped, if widths agree. An edit that was trained on the
target is the measure of what could be had there.

Not evidence that both models compute alike: a map also carries an edit whose effect depends on the
constant alone. And an effect that is lost may be lost by the map: R^2 along each direction says how
much of it the map represents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.decompose import decompose
from reftlens.analysis.engine.activations import edited_activations
from reftlens.analysis.metrics import Metric, probability_of
from reftlens.bridge import require_causal, width_of
from reftlens.cone.answers import Answers
from reftlens.data import Prompt, as_prompts
from reftlens.data.batches import as_batches
from reftlens.edit.reft import Reft
from reftlens.edit.site import Site
from reftlens.interventions import DiReFT, Intervention, SteeringVector
from reftlens.positions import All, Positions
from reftlens.results import Carried
from reftlens.results.carried import CarriedDirection, CarriedEffect

Score = Callable[[TransformerBridge, Sequence[Prompt], Sequence[str]], Metric]

_PENALTIES = (1e-10, 1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of ridge regression, in parts of the mean variance of a coordinate."""


@torch.no_grad()
def carry(
    bridge: TransformerBridge,
    reft: Reft,
    target: TransformerBridge,
    prompts: Sequence[Prompt],
    held_out: Sequence[tuple[Prompt, str]],
    *,
    fit: Literal["ridge", "orthogonal"] = "ridge",
    hook_names: Sequence[str] | None = None,
    at: Positions | None = None,
    trained: Reft | None = None,
    score: Score = probability_of,
    score_name: str = "probability of the answer",
    batch_size: int = 64,
    seed: int = 0,
) -> tuple[Reft, Carried]:
    """Carries an edit to another model, and measures it there beside its controls.

    The cost: for each site, the prompts run once in each model, up to that site. The held-out
    prompts do as well; then each edit runs on its light cone, one in the source and at most five in
    the target.

    Args:
        bridge: the model that the edit was trained on.
        reft: the edit; affine in every site, without a factor per coordinate.
        target: the model to carry it to; causal.
        prompts: texts or conversations on which the maps are fitted. There should be several times
            as many tokens as the width.
        held_out: other prompts, with the answers that the edit should give.
        fit: "ridge", or "orthogonal" for models of one width.
        hook_names: for each site of the edit, the point in the target; the same names by default.
        at: tokens on which the maps are fitted; all of them by default. Where the models'
            tokenizers differ, a rule that selects as many tokens in both, such as the last.
        trained: an edit that was trained on the target with the same budget, to compare with.
        score: makes the metric from prompts and answers, as for `rl.reft_map`.
        score_name: name of the score, with its unit.
        batch_size: prompts in one forward pass.
        seed: seed of the shuffled prompts and the random rotation.

    Returns:
        The edit on the target, and what was lost.

    Raises:
        ValueError: If there are fewer than five prompts or no held-out ones, a site's change is not
            low-rank and affine, widths differ where they must agree, a point does not exist, or a
            rule selects unequal numbers of tokens in the models.
    """
    for one in (bridge, target):
        require_causal(one, "an edit that is carried")
    prompts = as_prompts(prompts)
    if len(prompts) < 5 or not held_out:
        raise ValueError(
            f"carry needs at least five prompts and one held-out pair, got {len(prompts)} and {len(held_out)}"
        )
    if fit not in ("ridge", "orthogonal"):
        raise ValueError(f"fit must be 'ridge' or 'orthogonal', got {fit!r}")
    sites = _target_sites(reft, hook_names)
    rule = All() if at is None else at
    fitted_on = [_Shared(*both, list(prompts), batch_size) for both in _both(bridge, reft.sites, target, sites, rule)]
    draw = torch.Generator().manual_seed(seed)
    maps = [_fitted(shared.source, shared.target, shared.prompt, fit) for shared in fitted_on]
    shuffled = [_fitted(*shared.shuffled(draw), fit) for shared in fitted_on]
    turned = [_turned(one, draw) for one in maps]
    carried = _carried(reft, target, sites, maps)
    variants = {"carried": carried} | ({} if trained is None else {"trained on the target": trained})
    variants |= {
        "maps of shuffled prompts": _carried(reft, target, sites, shuffled),
        "maps turned at random": _carried(reft, target, sites, turned),
    }
    if all(one.forward.shape[0] == one.forward.shape[1] for one in maps):
        variants["not mapped"] = _carried(reft, target, sites, [_unmapped(one) for one in maps])
    texts = [prompt for prompt, _ in held_out]
    effects = _effects(bridge, reft, target, variants, held_out, score, batch_size)
    return carried, Carried(
        effects=tuple(effects),
        directions=tuple(_directions(bridge, reft, target, sites, (maps, shuffled), texts, batch_size)),
        fits=tuple(f"{one.name} on {len(shared.source)} tokens" for one, shared in zip(maps, fitted_on, strict=True)),
        score=score_name,
        n_held_out=len(held_out),
    )


def _target_sites(reft: Reft, hook_names: Sequence[str] | None) -> list[Site]:
    if hook_names is None:
        return list(reft.sites)
    if isinstance(hook_names, str) or len(hook_names) != len(reft.sites):
        raise ValueError(
            f"hook_names must have one name for each of the {len(reft.sites)} sites of the edit, got {hook_names!r}"
        )
    return [Site(name, site.positions, site.head) for name, site in zip(hook_names, reft.sites, strict=True)]


@final
class _Shared:
    """States of two models at the same tokens of the same prompts, at one site."""

    def __init__(
        self,
        source: tuple[TransformerBridge, Site],
        target: tuple[TransformerBridge, Site],
        prompts: Sequence[Prompt],
        batch_size: int,
    ) -> None:
        self.source, self.prompt = _states(*source, prompts, batch_size)
        self.target, other = _states(*target, prompts, batch_size)
        if not torch.equal(self.prompt, other):
            counts = [torch.bincount(rows, minlength=len(prompts)) for rows in (self.prompt, other)]
            row = int((counts[0] != counts[1]).nonzero()[0])
            raise ValueError(
                f"{source[1].positions.short} selects {int(counts[0][row])} tokens of {prompts[row]!r} in the source and "
                f"{int(counts[1][row])} in the target: pass at= with a rule that selects as many in both, such as rl.Last(1)"
            )

    def shuffled(self, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs each prompt with another one, token by token from the first on, as far as the shorter of both goes."""
        n = int(self.prompt.max()) + 1
        # A shift along a random order leaves no prompt with itself.
        order = torch.randperm(n, generator=draw)
        partner = torch.empty_like(order).scatter(0, order, order.roll(1))
        rows, others = [], []
        for prompt in range(n):
            own, other = ((self.prompt == which).nonzero().flatten() for which in (prompt, int(partner[prompt])))
            length = min(len(own), len(other))
            rows.append(own[:length])
            others.append(other[:length])
        mine = torch.cat(rows)
        return self.source[mine], self.target[torch.cat(others)], self.prompt[mine]


def _both(
    bridge: TransformerBridge,
    sites: Sequence[Site],
    target: TransformerBridge,
    targets: Sequence[Site],
    rule: Positions,
) -> list[tuple[tuple[TransformerBridge, Site], tuple[TransformerBridge, Site]]]:
    """Pairs the points of the sites, with another rule for their tokens."""
    return [
        ((bridge, Site(one.hook_name, rule, one.head)), (target, Site(other.hook_name, rule, other.head)))
        for one, other in zip(sites, targets, strict=True)
    ]


def _states(
    bridge: TransformerBridge, site: Site, prompts: Sequence[Prompt], batch_size: int
) -> tuple[Float[Tensor, "token d_model"], Int[Tensor, " token"]]:
    """Returns the base's states at a site, and each token's prompt, in order of both."""
    # A zero vector changes nothing, and shows what it would change.
    at = Reft([(site, SteeringVector(width_of(bridge, site.hook_name, site.head)).to(bridge.cfg.device))])
    found, prompt, first = [], [], 0
    for batch in as_batches(bridge, list(prompts), batch_size=batch_size):
        ((edit, h),) = edited_activations(bridge, at, batch)
        found.append(h.double().cpu())
        prompt.append(edit.mask.nonzero()[:, 0].cpu() + first)
        first += len(batch)
    return torch.cat(found), torch.cat(prompt)


@final
@dataclass(frozen=True, eq=False)
class _Maps:
    """Affine maps between the states of two models, h_t ~ N (h_s - mean_s) + mean_t, and back."""

    forward: Float[Tensor, "d_target d_source"]
    back: Float[Tensor, "d_source d_target"]
    source: Float[Tensor, " d_source"]
    target: Float[Tensor, " d_target"]
    name: str

    def there(self, h: Float[Tensor, "token d_source"]) -> Float[Tensor, "token d_target"]:
        return (h - self.source) @ self.forward.T + self.target

    def home(self, h: Float[Tensor, "token d_target"]) -> Float[Tensor, "token d_source"]:
        return (h - self.target) @ self.back.T + self.source


def _fitted(
    source: Float[Tensor, "token d_source"],
    target: Float[Tensor, "token d_target"],
    prompt: Int[Tensor, " token"],
    fit: str,
) -> _Maps:
    """Fits both maps on the states of shared tokens."""
    means = source.mean(0), target.mean(0)
    x, y = source - means[0], target - means[1]
    if fit == "orthogonal":
        if x.shape[1] != y.shape[1]:
            raise ValueError(
                f"an orthogonal map needs models of one width, got {x.shape[1]} and {y.shape[1]}: pass fit='ridge'"
            )
        # The rotation that brings x nearest to y (Schönemann 1966).
        left, _, right = torch.linalg.svd(y.T @ x)
        rotation = left @ right
        return _Maps(rotation, rotation.T, *means, "orthogonal map")
    forward, there = _ridge(x, y, prompt)
    back, home = _ridge(y, x, prompt)
    return _Maps(forward, back, *means, f"ridge map, penalties {there:g} and {home:g},")


def _ridge(
    x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"], prompt: Int[Tensor, " token"]
) -> tuple[Float[Tensor, "d_out d_in"], float]:
    """Regresses y on x with the penalty that does best on every fifth prompt, then on all prompts with this penalty."""
    # Counted among the prompts that have tokens here: an empty part would choose the smallest
    # penalty of all.
    which, place = prompt.unique(return_inverse=True)
    if len(which) < 5:
        raise ValueError(
            f"carry needs at least five prompts with tokens that at= selects, got {len(which)}: the penalty is chosen on a fifth"
        )
    apart = place % 5 == 4
    solve = _solver(x[~apart], y[~apart])
    errors = [float((x[apart] @ solve(penalty) - y[apart]).square().sum()) for penalty in _PENALTIES]
    best = _PENALTIES[errors.index(min(errors))]
    return _solver(x, y)(best).T, best


def _solver(x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"]) -> Callable[[float], Tensor]:
    """Returns a function of the penalty that gives the coefficients [d_in, d_out]."""
    left, sizes, right = torch.linalg.svd(x, full_matrices=False)
    mean = sizes.square().sum() / x.shape[1]
    inner = left.T @ y
    return lambda penalty: right.T @ ((sizes / (sizes.square() + penalty * mean))[:, None] * inner)


def _turned(maps: _Maps, draw: torch.Generator) -> _Maps:
    """Returns the maps after a random rotation of the target: singular values stay, and directions go."""
    width = len(maps.target)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=draw, dtype=torch.float64)).Q
    return replace(maps, forward=rotation @ maps.forward, back=maps.back @ rotation.T)


def _unmapped(maps: _Maps) -> _Maps:
    same, nothing = torch.eye(len(maps.target), dtype=torch.float64), torch.zeros_like(maps.target)
    return _Maps(same, same, nothing, nothing, "no map")


def _carried(reft: Reft, target: TransformerBridge, sites: Sequence[Site], maps: Sequence[_Maps]) -> Reft:
    pairs = [
        (site, _through(intervention, one)) for site, (_, intervention), one in zip(sites, reft, maps, strict=True)
    ]
    # Where the target is, which need not be where the source is.
    return Reft(pairs, names=reft.names, scales=reft.scales).to(target.cfg.device)


@torch.no_grad()
def _through(intervention: Intervention, maps: _Maps) -> Intervention:
    """Returns the change N (A (M h + m) + c) as an intervention."""
    affine = intervention.affine()
    if affine.diagonal is not None and bool(affine.diagonal.any()):
        raise ValueError(
            f"{type(intervention).__name__} scales each coordinate of the source, which another model does not have: carry a "
            "low-rank edit, such as LoReFT or DiReFT"
        )
    write, read, constant = (t.detach().double().cpu() for t in (affine.write, affine.read, affine.constant))
    if not len(write):
        return SteeringVector.of((maps.forward @ constant).float())
    # The constant in the coordinates of what is written; what lies outside gets a coordinate of its
    # own.
    push = torch.linalg.lstsq(write.T, constant[:, None]).solution[:, 0]
    rest = constant - push @ write
    if float(rest.norm()) > 1e-5 * float(constant.norm()):
        write, read = torch.cat([write, rest[None]]), torch.cat([read, torch.zeros_like(read[:1])])
        push = torch.cat([push, torch.ones_like(push[:1])])
    edit = DiReFT(len(maps.target), len(write))
    edit.write.copy_(write @ maps.forward.T)
    edit.read.weight.copy_(read @ maps.back)
    edit.read.bias.copy_(push + read @ (maps.source - maps.back @ maps.target))
    return edit


def _effects(
    bridge: TransformerBridge,
    reft: Reft,
    target: TransformerBridge,
    variants: dict[str, Reft],
    held_out: Sequence[tuple[Prompt, str]],
    score: Score,
    batch_size: int,
) -> list[CarriedEffect]:
    """Measures the edit on its own model, and each variant on the target."""
    (own,) = _measured(bridge, [reft], held_out, score, batch_size)
    others = _measured(target, list(variants.values()), held_out, score, batch_size)
    found = [CarriedEffect("on its own model", own[0], 1.0, own[1])]
    for name, (effect, kl) in zip(variants, others, strict=True):
        found.append(CarriedEffect(name, effect, effect / own[0] if own[0] else float("nan"), kl))
    return found


def _measured(
    bridge: TransformerBridge,
    refts: Sequence[Reft],
    held_out: Sequence[tuple[Prompt, str]],
    score: Score,
    batch_size: int,
) -> list[tuple[float, float]]:
    """Returns the mean change of the score and the mean KL divergence from the base, for each edit."""
    texts, answers = [prompt for prompt, _ in held_out], [answer for _, answer in held_out]
    metric = score(bridge, texts, answers)
    totals, first = torch.zeros(len(refts), 2, dtype=torch.float64), 0
    for batch in as_batches(bridge, texts, batch_size=batch_size):
        variants = [one.edits(batch) for one in refts]
        pair = torch.arange(first, first + len(batch))
        runs = Answers(bridge, batch, [edit for edits in variants for edit in edits]).many([(), *variants])
        base, *edited = (logits.cpu() for logits in runs)
        logprobs = base.double().log_softmax(-1)
        for place, logits in enumerate(edited):
            totals[place, 0] += (metric(logits, pair) - metric(base, pair)).double().sum()
            totals[place, 1] += (logprobs.exp() * (logprobs - logits.double().log_softmax(-1))).sum()
        first += len(batch)
    return [(effect, kl) for effect, kl in (totals / len(held_out)).tolist()]


def _directions(
    bridge: TransformerBridge,
    reft: Reft,
    target: TransformerBridge,
    sites: Sequence[Site],
    maps: tuple[Sequence[_Maps], Sequence[_Maps]],
    texts: Sequence[Prompt],
    batch_size: int,
) -> list[CarriedDirection]:
    """Scores the maps along each direction of the edit, at the tokens that it edits."""
    operators = decompose(bridge, reft, as_batches(bridge, list(texts), batch_size=batch_size))
    found = []
    for place, (operator, one, other) in enumerate(zip(operators, reft.sites, sites, strict=True)):
        shared = _Shared((bridge, one), (target, other), texts, batch_size)
        # [maps, direction] of what is read and of what is written
        scores = [_along(operator.write.double(), operator.read.double(), fitted[place], shared) for fitted in maps]
        (read, write), (shuffled_read, shuffled_write) = scores
        columns = zip(read, write, shuffled_read, shuffled_write, strict=True)
        found += [CarriedDirection(operator.where, index, *numbers) for index, numbers in enumerate(columns)]
    return found


def _along(
    write: Float[Tensor, "direction d_source"],
    read: Float[Tensor, "direction d_source"],
    maps: _Maps,
    shared: _Shared,
) -> tuple[list[float], list[float]]:
    """Returns R^2 of what each direction reads, and along what it writes once carried."""
    written = write @ maps.forward.T
    reading = _explained(shared.source @ read.T, maps.home(shared.target) @ read.T)
    return reading, _explained(shared.target @ written.T, maps.there(shared.source) @ written.T)


def _explained(true: Float[Tensor, "token direction"], found: Float[Tensor, "token direction"]) -> list[float]:
    total = (true - true.mean(0)).square().sum(0)
    # Beside the mean square, a variance of rounding is none: such as at the first token of all
    # prompts.
    varies = total > 1e-8 * true.square().sum(0)
    return torch.where(varies, 1 - (true - found).square().sum(0) / total, torch.nan).tolist()
