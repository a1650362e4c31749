"""Loading a model as a `TransformerBridge` that is frozen and in eval mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from reftlens.bridge.caching import mend_attention
from reftlens.organisms import ORGANISMS

_REVISIONS: WeakKeyDictionary[TransformerBridge, str] = WeakKeyDictionary()
"""The commit that each bridge was loaded from, where it came from the hub."""


def load_bridge(
    name: str | Path | None = None,
    *,
    hf_model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    device_map: str | dict[str, str | int] | None = None,
    offload_folder: str | Path | None = None,
) -> TransformerBridge:
    """Loads a model as a frozen `TransformerBridge` in eval mode.

    Args:
        name: an embedded organism ("facts-small"), a local directory or a hub name ("gpt2").
        hf_model: a model already in memory instead of a name. It becomes the bridge's own and changes in place.
        tokenizer: its tokenizer; needed with `hf_model`, optional with a name.
        device: where the model goes.
        dtype: of the weights; as stored in the checkpoint (or as `hf_model` has it) if not given.
        device_map: spreads a named model over several devices, or the disk, as `from_pretrained` of transformers does;
            `device` is not used then. Edits stay where the embedding is, and their tokens come to them. Tested with
            blocks on the disk and the rest on a CPU, not on several GPUs.
        offload_folder: where a `device_map` puts what goes to the disk.

    Raises:
        ValueError: if the name is none of the three, the arguments do not fit together, or TransformerLens cannot
            run this architecture in this dtype.
    """
    if (name is None) == (hf_model is None):
        raise ValueError("load_bridge wants either a name or hf_model=..., and not both")
    commit = None
    if hf_model is None:
        placed = {"device_map": device_map, "offload_folder": offload_folder} if device_map is not None else {}
        hf_model, loaded_tokenizer, commit = _load_pretrained(str(name), dtype, placed)
        tokenizer = tokenizer or loaded_tokenizer
    elif tokenizer is None:
        raise ValueError("load_bridge(hf_model=...) also wants its tokenizer: pass tokenizer=...")
    elif device_map is not None:
        raise ValueError("hf_model is where it is: pass device_map to its from_pretrained")
    if any(type(module).__module__.startswith("transformer_lens.") for module in hf_model.modules()):
        raise ValueError(
            "hf_model already belongs to a bridge, and a second one would fire every hook twice: use the first "
            "bridge, or load the model again"
        )
    _require_runnable(hf_model, dtype or hf_model.dtype)
    spread = getattr(hf_model, "hf_device_map", None) is not None
    if not spread:
        hf_model = hf_model.to(device=device, dtype=dtype or hf_model.dtype)
    hf_model.config.architectures = [type(hf_model).__name__]
    # The bridge replaces a tokenizer that does not say these two things about itself.
    tokenizer.init_kwargs.setdefault("name_or_path", "")
    tokenizer.init_kwargs["add_bos_token"] = True
    bridge = TransformerBridge.boot_transformers(
        str(name or hf_model.config.name_or_path or type(hf_model).__name__),
        hf_model=hf_model,
        tokenizer=tokenizer,
        device=None if spread else str(device),
        dtype=hf_model.dtype,
    )
    if commit is not None:
        _REVISIONS[bridge] = commit
    mend_attention(bridge)
    return freeze(bridge)


def revision(bridge: TransformerBridge) -> str | None:
    """The commit on the hub that `load_bridge` took the weights from; None if they came from elsewhere."""
    return _REVISIONS.get(bridge)


_DOUBLE = ("GPT2", "GPTNeoX", "Bert", "Roberta")
"""Beginnings of the classes whose padded batches were seen to stay finite in float64."""


def _require_runnable(hf_model: PreTrainedModel, dtype: torch.dtype) -> None:
    if dtype is torch.float64 and not type(hf_model).__name__.startswith(_DOUBLE):
        raise ValueError(
            f"{type(hf_model).__name__} cannot be run in float64: transformers takes its softmax in float32, where a float64 "
            "attention mask is minus infinity, and padded batches become NaN: pass dtype=torch.float32"
        )
    if type(hf_model).__name__.startswith("Olmo2") and dtype in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"TransformerLens 4.3 cannot run OLMo2 in {dtype} without a key-value cache (its queries stay in float32, its "
            "values do not): pass dtype=torch.float32"
        )


def freeze(bridge: TransformerBridge) -> TransformerBridge:
    """Puts the base in eval mode without gradients. Needed again after `enable_compatibility_mode`."""
    bridge.eval()
    bridge.requires_grad_(False)
    return bridge


def _load_pretrained(
    name: str, dtype: torch.dtype | None, placed: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str | None]:
    """The model, its tokenizer, and the commit on the hub that they are of."""
    source = str(ORGANISMS.get(name, name))
    try:
        # One file first: a name that does not exist should not be looked up once for every kind of file.
        config_file = cached_file(source, "config.json")
        tokenizer = AutoTokenizer.from_pretrained(source)
        architectures = AutoConfig.from_pretrained(source).architectures or []
        masked = any(architecture.endswith("ForMaskedLM") for architecture in architectures)
        auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
        model = auto.from_pretrained(source, dtype=dtype or "auto", attn_implementation="eager", **placed)
    except (OSError, ValueError) as error:
        where = "the directory could not be read as a model" if Path(source).is_dir() else "there is no such directory"
        raise ValueError(
            f"cannot load the model {name!r}: the embedded organisms are {', '.join(sorted(ORGANISMS))}; {where}; and as "
            f"a hub name it could not be fetched: {str(error).strip().splitlines()[0]}"
        ) from error
    return model, tokenizer, extract_commit_hash(config_file, None)


def n_parameters(bridge: TransformerBridge) -> int:
    """Numbers of the base, tied ones once.

    Not those of a fused query-key-value matrix that the bridge has split and keeps, unused, beside its parts.
    """
    model = bridge.original_model
    saved = model.state_dict().keys()
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name in saved)
