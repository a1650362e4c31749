"""Each architecture against plain Hugging Face. `python tests/test_architectures.py` prints the README's table from here."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import pytest
import torch
from architectures import ARCHITECTURES, CAUSAL, FURTHER, MASKED, N_LAYERS, TWELVE, make_hf
from conftest import COMPLETIONS, PROMPTS, make_bridge, make_tokenizer

import reftlens as rl
from reftlens.bridge import width_of
from reftlens.cone.proof import parts_of

bridge_of = functools.cache(make_bridge)


def make_edit(seed: int = 1) -> rl.Reft:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return rl.Reft([(rl.Site("blocks.1.hook_resid_post", "f2+l2"), rl.LoReFT(32, 3))])


def plain_logits(hf, reft, batch):
    """The same edit as a forward hook on the Hugging Face model's own layer, without a bridge."""
    (site, intervention), *_ = reft
    mask = site.positions.mask(batch.prompt_mask)
    (layers,) = (m for m in hf.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == N_LAYERS)

    def hook(_module, _args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        edited = torch.where(mask[..., None], intervention(hidden), hidden)
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    handle = layers[1].register_forward_hook(hook)
    try:
        return hf(batch.tokens, attention_mask=batch.attention_mask, use_cache=False).logits
    finally:
        handle.remove()


def relative(ours, theirs) -> float:
    return float((ours - theirs).detach().double().norm() / theirs.detach().double().norm())


def against_plain_hook(architecture: str, dtype: torch.dtype = torch.float32) -> tuple[float, float]:
    """Largest relative error of logits and of the edit's gradients."""
    bridge, hf, reft = bridge_of(architecture, dtype=dtype), make_hf(architecture, dtype=dtype), make_edit()
    batch = rl.encode(bridge, PROMPTS, COMPLETIONS)
    real = batch.attention_mask.bool()
    with reft.hooks(bridge, batch.prompt_mask):
        ours = bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)[real]
    theirs, base = plain_logits(hf, reft, batch)[real], hf(batch.tokens, attention_mask=batch.attention_mask).logits
    assert relative(theirs, base[real]) > 1e-2, "an edit without effect would equal anything"
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(0))
    gradients = [torch.autograd.grad((logits * weight).sum(), list(reft.parameters())) for logits in (ours, theirs)]
    return relative(ours, theirs), max(relative(one, other) for one, other in zip(*gradients, strict=True))


def last_logits(bridge, reft, prompts, side):
    batch = rl.encode(bridge, prompts, padding_side=side)
    with torch.no_grad(), reft.hooks(bridge, batch.prompt_mask):
        logits = bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
    return logits[torch.arange(len(prompts)), batch.last_prompt_index]


def batched_against_single(architecture: str, side: str) -> float:
    """Relative error of the last token's logits: prompts padded into one batch, against each alone."""
    bridge, reft = bridge_of(architecture), make_edit()
    alone = torch.cat([last_logits(bridge, reft, [prompt], "right") for prompt in PROMPTS])
    return relative(last_logits(bridge, reft, PROMPTS, side), alone)


def cached_equals_uncached(architecture: str) -> bool:
    bridge, reft = bridge_of(architecture), make_edit()
    texts = [rl.generate(bridge, reft, PROMPTS, max_new_tokens=8, use_cache=cached) for cached in (True, False)]
    assert texts[0] != rl.generate(bridge, None, PROMPTS, max_new_tokens=8), "an edit without effect shows nothing"
    return texts[0] == texts[1]


@pytest.mark.sampled(8)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_and_gradients_equal_a_plain_hook(architecture) -> None:
    assert max(against_plain_hook(architecture)) < 1e-5


@pytest.mark.parametrize("architecture", [a for a in TWELVE if a != "olmo2"])
def test_in_bfloat16_they_are_equal_up_to_its_rounding(architecture) -> None:
    """Its unit is 2^-8 = 0.4%; a few layers of it."""
    assert max(against_plain_hook(architecture, torch.bfloat16)) < 2e-2


def test_olmo2_in_half_precision_is_refused() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(ValueError, match=r"cannot run OLMo2.*pass dtype=torch.float32"):
            make_bridge("olmo2", dtype=dtype)
    bridge = rl.load_bridge(
        hf_model=make_hf("olmo2", dtype=torch.bfloat16), tokenizer=make_tokenizer(), dtype=torch.float32
    )
    assert bridge(rl.encode(bridge, PROMPTS).tokens).dtype == torch.float32


@pytest.mark.parametrize("architecture", TWELVE)
def test_float64_runs_or_is_refused(architecture) -> None:
    if architecture not in ("gpt2", "gpt_neox", "bert", "roberta"):
        with pytest.raises(ValueError, match=r"cannot run in float64.*NaN"):
            make_bridge(architecture, dtype=torch.float64)
        return
    bridge = make_bridge(architecture, dtype=torch.float64)
    for side in ("left", "right"):
        batch = rl.encode(bridge, PROMPTS, padding_side=side)
        assert bool(bridge(batch.tokens, attention_mask=batch.attention_mask)[batch.prompt_mask].isfinite().all())


@pytest.mark.sampled(12)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_padded_batch_equals_single_prompts(architecture, side) -> None:
    assert batched_against_single(architecture, side) < 1e-5


@pytest.mark.sampled(7)
@pytest.mark.parametrize("architecture", CAUSAL + FURTHER)
def test_cached_equals_uncached_generation(architecture) -> None:
    assert cached_equals_uncached(architecture)


@pytest.mark.parametrize("architecture", MASKED)
def test_masked_models_do_not_predict_the_next_token(architecture) -> None:
    bridge, reft = bridge_of(architecture), make_edit()
    with pytest.raises(ValueError, match=r"generate needs.*ForMaskedLM predicts masked"):
        rl.generate(bridge, reft, PROMPTS)
    with pytest.raises(ValueError, match=r"train needs.*ForMaskedLM predicts masked"):
        rl.train(bridge, reft, [("a", " b")])


@pytest.mark.parametrize("architecture", MASKED)
def test_a_directory_with_a_masked_model_loads(architecture, tmp_path) -> None:
    make_hf(architecture).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    bridge = rl.load_bridge(tmp_path)
    assert type(bridge.original_model).__name__.endswith("ForMaskedLM")
    batch = rl.encode(bridge, PROMPTS)
    logits = [m(batch.tokens, attention_mask=batch.attention_mask) for m in (bridge, bridge_of(architecture))]
    assert torch.equal(*logits)


def editable(architecture: str, points: tuple[str, ...]) -> str:
    """Which of a block's points take an edit there that holds; a dash where none does."""
    bridge, found = bridge_of(architecture), []
    for point in points:
        name = f"blocks.1.{point}"
        try:
            reft = rl.Reft([(rl.Site(name, rl.All()), rl.DiReFT(width_of(bridge, name), 1))])
        except ValueError:
            continue
        found += [point] * rl.check_sites(bridge, reft).holds
    return "yes" if len(found) == len(points) else ", ".join(found) or "no"


def saved_by_cones(architecture: str) -> str:
    """What `train` and the analyses leave out on this model."""
    bridge = bridge_of(architecture)
    parts = parts_of(bridge, rl.encode(bridge, PROMPTS))
    return " and ".join(["tokens"] * parts.columns + ["layers"] * parts.layers) or "nothing"


EXACT: tuple[tuple[str, Callable[[str], float]], ...] = (
    ("logits", lambda a: against_plain_hook(a)[0]),
    ("gradients", lambda a: against_plain_hook(a)[1]),
    ("bf16", lambda a: max(against_plain_hook(a, torch.bfloat16))),
    ("left padding", lambda a: batched_against_single(a, "left")),
    ("right padding", lambda a: batched_against_single(a, "right")),
)


def table() -> str:
    """The README's table, one line for each architecture."""
    heads = [name for name, _ in EXACT] + [
        "decoding",
        "cone saves",
        "q, k, v, z",
        "MLP neurons",
        "`attn_out`",
        "`resid_mid`",
    ]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for architecture in ARCHITECTURES:
        cells = [
            "refused" if (name, architecture) == ("bf16", "olmo2") else f"{measure(architecture):.0e}"
            for name, measure in EXACT
        ]
        cells.append(
            ("yes" if cached_equals_uncached(architecture) else "no") if architecture not in MASKED else "none"
        )
        cells.append(saved_by_cones(architecture))
        cells.append(editable(architecture, ("attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z")))
        cells += [
            editable(architecture, (point,)).replace(point, "yes")
            for point in ("mlp.hook_post", "hook_attn_out", "hook_resid_mid")
        ]
        lines.append(f"| {architecture} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
