"""Everything this package knows about TransformerLens's bridge and its quirks: nothing else handles them.

The model is a plain `TransformerBridge`, never wrapped or subclassed. What is kept here: how to load one so that
it is frozen and in eval mode; the canonical name of a hook; the hooks where a write is lost or only half
done, which are refused with the reason; how far into a cached sequence a forward pass begins.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from reftlens.organisms import ORGANISMS

_LOST_WRITES: tuple[tuple[str, str], ...] = (
    (
        r"\.attn\.qkv\.hook_(in|out)$",
        "it never fires: the fused qkv projection is split, use attn.hook_q / k / v",
    ),
    (r"\.hook_rot_[qk]$", "it never fires on every architecture; use attn.hook_q / attn.hook_k"),
    (r"^embed\.hook_in$", "it carries token ids; use hook_embed"),
    (
        r"\.attn\.hook_(pattern|attn_scores)$",
        "its last axis is a position, not a direction; edit attn.hook_z or hook_attn_out",
    ),
)
"""Hook points, by canonical name, whose edits would be lost without a word, and why."""

_RESID_MID = (
    "a write there reaches the MLP branch alone, while the skip connection keeps the old value; "
    "use hook_resid_pre, hook_attn_out or hook_resid_post"
)
_BERT_ATTN_OUT = (
    "on this architecture it is the residual after LayerNorm, not the attention output; use attn.o.hook_out"
)


def load_bridge(
    name: str | Path | None = None,
    *,
    hf_model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> TransformerBridge:
    """Loads a model as a frozen `TransformerBridge` in eval mode.

    Args:
        name: an embedded organism ("facts-small"), a local directory or a hub name ("gpt2").
        hf_model: a model already in memory instead of a name. It becomes the bridge's own and changes in place.
        tokenizer: its tokenizer; needed with `hf_model`, optional with a name.
        device: where the model goes.
        dtype: of the weights; as stored in the checkpoint (or as `hf_model` has it) if not given.

    Raises:
        ValueError: if the name is none of the three, or the arguments do not fit together.
    """
    if (name is None) == (hf_model is None):
        raise ValueError("load_bridge wants either a name or hf_model=..., and not both")
    if hf_model is None:
        hf_model, loaded_tokenizer = _load_pretrained(str(name), dtype)
        tokenizer = tokenizer or loaded_tokenizer
    elif tokenizer is None:
        raise ValueError("load_bridge(hf_model=...) also wants its tokenizer: pass tokenizer=...")
    if any(type(module).__module__.startswith("transformer_lens.") for module in hf_model.modules()):
        raise ValueError(
            "hf_model already belongs to a bridge, and a second one would fire every hook twice: use the first "
            "bridge, or load the model again"
        )
    hf_model = hf_model.to(device=device, dtype=dtype or hf_model.dtype)
    hf_model.config.architectures = [type(hf_model).__name__]
    # The bridge replaces a tokenizer that does not say these two things about itself.
    tokenizer.init_kwargs.setdefault("name_or_path", "")
    tokenizer.init_kwargs["add_bos_token"] = True
    bridge = TransformerBridge.boot_transformers(
        str(name or hf_model.config.name_or_path or type(hf_model).__name__),
        hf_model=hf_model,
        tokenizer=tokenizer,
        device=str(device),
        dtype=hf_model.dtype,
    )
    return freeze(bridge)


def freeze(bridge: TransformerBridge) -> TransformerBridge:
    """Puts the base in eval mode without gradients. Needed again after `enable_compatibility_mode`."""
    bridge.eval()
    bridge.requires_grad_(False)
    return bridge


def _load_pretrained(name: str, dtype: torch.dtype | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    source = str(ORGANISMS.get(name, name))
    try:
        # One file first: a name that does not exist should not be looked up once for every kind of file.
        cached_file(source, "config.json")
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype or "auto", attn_implementation="eager")
    except (OSError, ValueError) as error:
        where = "the directory could not be read as a model" if Path(source).is_dir() else "there is no such directory"
        raise ValueError(
            f"cannot load the model {name!r}: the embedded organisms are {', '.join(sorted(ORGANISMS))}; {where}; and as "
            f"a hub name it could not be fetched: {str(error).strip().splitlines()[0]}"
        ) from error
    return model, tokenizer


def canonical_hook(bridge: TransformerBridge, hook_name: str) -> str:
    """The bridge's own name of an activation point: `blocks.0.hook_resid_post` -> `blocks.0.hook_out`.

    Raises:
        ValueError: if there is no such point (the nearest names are given), or a write there would be lost.
    """
    points = bridge.hook_dict
    if hook_name not in points:
        near = difflib.get_close_matches(hook_name, points, n=3, cutoff=0.5)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise ValueError(
            f"this model has no hook {hook_name!r}{hint} (it has {bridge.cfg.n_layers} layers, blocks.0 to "
            f"blocks.{bridge.cfg.n_layers - 1})"
        )
    name = points[hook_name].name or hook_name
    reason = next((why for pattern, why in _LOST_WRITES if re.search(pattern, name)), None)
    if hook_name.endswith("hook_resid_mid") or re.fullmatch(r"blocks\.\d+\.ln2\.hook_in", name):
        reason = _RESID_MID
    if hook_name.endswith("hook_attn_out") and "bert" in type(bridge.original_model).__name__.lower():
        reason = _BERT_ATTN_OUT
    if reason is not None:
        raise ValueError(f"cannot edit {hook_name!r}: {reason}")
    gate = bridge._gated_hook_reason(name)
    if gate is not None:
        raise ValueError(f"cannot edit {hook_name!r}: it is switched off; call bridge.set_{gate}(True) first")
    return name


def layer_of(hook_name: str) -> int | None:
    """The block that a hook name lies in, or None for one outside the blocks."""
    match = re.match(r"blocks\.(\d+)\.", hook_name)
    return int(match[1]) if match else None


@dataclass
class ForwardStart:
    """How many positions were already in the key-value cache when the running forward pass began."""

    offset: int = 0


@contextmanager
def watch_forwards(bridge: TransformerBridge) -> Iterator[ForwardStart]:
    """Follows the offset of each forward pass, so that decoding steps are told from the prefill.

    "One new position" does not tell them apart: a one-token prompt has a prefill of length one.
    """
    start = ForwardStart()

    def note_offset(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        start.offset = int(cache.get_seq_length()) if cache is not None else 0

    handle = bridge.original_model.register_forward_pre_hook(note_offset, with_kwargs=True)
    try:
        yield start
    finally:
        handle.remove()


def has_hook(bridge: TransformerBridge, hook_name: str, hook_fn: object) -> bool:
    """Whether a hook function is still attached (`reset_hooks` takes everyone's off)."""
    return any(handle.user_hook is hook_fn for handle in bridge.hook_dict[hook_name].fwd_hooks)


def fingerprint(bridge: TransformerBridge) -> str:
    """A digest of the base's weights: shape, dtype and 64 values spread over each tensor, in the order of names.

    A fast check that two models are the same, not a cryptographic one.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(bridge.original_model.state_dict().items()):
        flat = tensor.detach().flatten()
        if flat.numel() == 0:
            continue
        index = torch.linspace(0, flat.numel() - 1, min(64, flat.numel()), dtype=torch.float64).long().to(flat.device)
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(flat[index].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
