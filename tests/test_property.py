"""Any edit anywhere is its equation: after = before + scale * delta at the edited tokens, and nothing elsewhere."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import torch
from architectures import CAUSAL, TWELVE
from conftest import PROMPTS, make_bridge, make_edit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_interventions import equation

import reftlens as rl
from reftlens.bridge import activation_shape
from reftlens.interventions import FAMILY

HOOKS = (
    "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "attn.o.hook_out", "mlp.out.hook_out",
    "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z", "mlp.hook_pre", "mlp.hook_post", "ln2.hook_out",
)  # fmt: skip
DOUBLE = ("gpt2", "gpt_neox", "bert", "roberta")
"""Architectures that run in float64; the others are refused there."""
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-10}


@functools.cache
def bridge_of(architecture: str, dtype: torch.dtype):
    return make_bridge(architecture, dtype=dtype)


@functools.cache
def hooks_of(architecture: str) -> tuple[str, ...]:
    """The points above that this architecture has; `test_sites.py` holds the rest to their reasons."""
    bridge = bridge_of(architecture, torch.float32)
    absent = {"hook_resid_mid"} - ({"hook_resid_mid"} if has_resid_mid(architecture) else set())
    return tuple(h for h in HOOKS if h not in absent and f"blocks.0.{h}" in bridge.hook_dict)


def has_resid_mid(architecture: str) -> bool:
    return architecture in set(CAUSAL) - {"gpt_neox", "phi"}


@functools.cache
def clean(architecture: str, dtype: torch.dtype, side: str, hook_name: str):
    bridge = bridge_of(architecture, dtype)
    return run(bridge, rl.encode(bridge, PROMPTS, padding_side=side), hook_name)


@torch.no_grad()
def run(bridge, batch, hook_name):
    _, cache = bridge.run_with_cache(
        batch.tokens, attention_mask=batch.attention_mask, use_cache=False, names_filter=[hook_name]
    )
    return cache[hook_name]


POSITIONS = st.one_of(
    st.builds(rl.First, st.integers(1, 4)),
    st.builds(rl.Last, st.integers(1, 4)),
    st.builds(rl.At, st.sampled_from([0, 1, -1, -2])),
    st.just(rl.All()),
    st.sampled_from(["f2+l2", "f1", "l3"]),
)


CASES = st.fixed_dictionaries(
    {
        "architecture": st.sampled_from(TWELVE),
        "double": st.booleans(),
        "kind": st.sampled_from(FAMILY),
        "rank": st.integers(1, 6),
        "layer": st.integers(0, 2),
        "hook": st.integers(0, 59),
        "head": st.none() | st.integers(0, 11),
        "positions": POSITIONS,
        "side": st.sampled_from(["left", "right"]),
        "scale": st.floats(-2, 2),
        "seed": st.integers(0, 2**16),
    }
)
"""`hook` and `head` count round what the architecture has: a strategy must not load models."""


def dtype_of(case) -> torch.dtype:
    return torch.float64 if case["double"] and case["architecture"] in DOUBLE else torch.float32


def site_of(case) -> tuple[rl.Site, int]:
    """The site of a drawn case, and how wide an edit there is."""
    hooks = hooks_of(case["architecture"])
    hook_name = f"blocks.{case['layer']}.{hooks[case['hook'] % len(hooks)]}"
    shape = activation_shape(bridge_of(case["architecture"], dtype_of(case)), hook_name)
    head = None if len(shape) == 1 or case["head"] is None else case["head"] % shape[0]
    return rl.Site(hook_name, case["positions"], head), math.prod(shape) if head is None else shape[-1]


@settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(CASES)
def test_an_edit_is_its_equation_at_the_hook(case) -> None:
    architecture, side, scale = (case[key] for key in ("architecture", "side", "scale"))
    dtype = dtype_of(case)
    site, width = site_of(case)
    bridge = bridge_of(architecture, dtype)
    batch = rl.encode(bridge, PROMPTS, padding_side=side)
    intervention = make_edit(case["kind"], width, min(case["rank"], width), seed=case["seed"]).to(dtype)
    (edit,) = rl.Reft([(site, intervention)]).edits(batch.prompt_mask)
    with rl.attach(bridge, [replace(edit, scale=scale)]):
        after = run(bridge, batch, site.hook_name)
    before = clean(architecture, dtype, side, site.hook_name)
    there = (slice(None), slice(None)) if site.head is None else (slice(None), slice(None), site.head)
    wanted = before.double().clone()
    part = wanted[there].clone()
    # Row by row: what one member does to a token depends on the others of its example.
    for row, mask in enumerate(edit.mask):
        h = before[there][row].double()[mask].flatten(1)
        if len(h):
            changed = h + scale * (equation(intervention, h) - h)
            part[row, mask] = changed.view_as(part[row, mask]).detach()
    wanted[there] = part
    error = (after.double() - wanted).abs().max() / wanted.abs().max()
    assert error <= TOLERANCE[dtype]
    untouched = torch.ones_like(before, dtype=torch.bool)
    untouched[there] &= ~edit.mask.reshape(*edit.mask.shape, *[1] * (before[there].ndim - 2))
    assert torch.equal(after[untouched], before[untouched])
