"""Every activation point of every architecture: an edit there is real, or refused with the reason. None is silently dead."""

from __future__ import annotations

import functools
import re

import pytest
from architectures import TWELVE, others_slow
from conftest import make_bridge

import reftlens as rl
from reftlens.bridge import canonical_hook, width_of

bridge_of = functools.cache(make_bridge)


def points(architecture: str) -> list[str]:
    """Every name that the bridge knows, aliases too; of the blocks, the one in the middle."""
    return sorted(n for n in bridge_of(architecture).hook_dict if not n.startswith(("blocks.0.", "blocks.2.")))


REASONS: dict[str, tuple[str, ...]] = {
    "never fires": ("attn.qkv.hook_in", "attn.qkv.hook_out", "rotary_emb.hook_out", "hook_pos_embed", "attn.hook_hidden_states"),
    "token ids|carries int64": ("embed.hook_in", "pos_embed.hook_in", "token_type_embed.hook_in"),
    "switched off": (
        "attn.hook_result", "attn.hook_attn_in", "hook_attn_in", "hook_mlp_in",
        "attn.hook_q_input", "attn.hook_k_input", "attn.hook_v_input", "hook_q_input", "hook_k_input", "hook_v_input",
    ),
    "last axis is a position": ("attn.hook_pattern", "attn.hook_attn_scores"),
    "not batch and position": ("attn.hook_cos", "attn.hook_sin", "rotary_emb.hook_cos", "rotary_emb.hook_sin"),
    "discards": ("rotary_emb.hook_in",),
}  # fmt: skip
"""Reason -> the points that are refused for it wherever they exist."""
NORMS = ("ln1", "ln2", "ln1_post", "ln2_post", "ln_final", "embed_ln", "attn.q_norm", "attn.k_norm")
REASONS["in a different way"] = tuple(f"{norm}.hook_{part}" for norm in NORMS for part in ("scale", "normalized"))
HEADS_FIRST = tuple(
    f"attn.{point}" for s in "qk" for point in (f"hook_{s}_normed", f"{s}_norm.hook_in", f"{s}_norm.hook_out")
)
OWN_REASONS: dict[str, dict[str, tuple[str, ...]]] = {
    "gpt2": {},
    "gpt_neox": {"never fires": ("attn.hook_rot_q", "attn.hook_rot_k")},
    "qwen3": {"not batch and position": HEADS_FIRST},
    "gemma3_text": {"not batch and position": HEADS_FIRST},
    "bert": {"residual after LayerNorm": ("hook_attn_out",), "before the second LayerNorm": ("hook_resid_mid",)},
    "roberta": {"residual after LayerNorm": ("hook_attn_out",), "before the second LayerNorm": ("hook_resid_mid",)},
}
EDITABLE_AFTER_ALL = {("gpt2", "attn.hook_hidden_states"), ("gpt_neox", "attn.hook_hidden_states"), ("gpt2", "hook_pos_embed"),
                      ("bert", "hook_pos_embed"), ("roberta", "hook_pos_embed"), ("bert", "hook_mlp_in"), ("roberta", "hook_mlp_in")}  # fmt: skip


def expected_reason(architecture: str, hook_name: str) -> str | None:
    """The reason that the tables above name for a point; None for one that is to be editable."""
    point = hook_name.removeprefix("blocks.1.")
    if (architecture, point) in EDITABLE_AFTER_ALL:
        return None
    tables = (REASONS, OWN_REASONS.get(architecture, {}))
    return next((reason for table in tables for reason, names in table.items() if point in names), None)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("architecture", others_slow(TWELVE))
def test_every_point_is_editable_or_refused_with_its_reason(architecture) -> None:
    bridge, taken = bridge_of(architecture), []
    for hook_name in points(architecture):
        reason = expected_reason(architecture, hook_name)
        if reason is None:
            taken.append((rl.Site(hook_name, rl.All()), rl.DiReFT(width_of(bridge, hook_name), 1)))
        else:
            with pytest.raises(ValueError, match=re.escape(hook_name) + f".*({reason})"):
                canonical_hook(bridge, hook_name)
    checks = rl.check_sites(bridge, rl.Reft(taken))
    assert [check for check in checks.sites if not check.holds] == []
    assert len(taken) >= 39
