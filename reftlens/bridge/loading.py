"""Loads a model as a `TransformerBridge` that is frozen and in eval mode."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import RotaryEmbeddingBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reftlens.bridge.caching import mend_attention
from reftlens.bridge.pretrained import (
    dtype_of,
    is_quantized,
    nothing_installed,
    plain_model,
    read_pretrained,
    require_device,
)

_REVISIONS: WeakKeyDictionary[TransformerBridge, str] = WeakKeyDictionary()
"""The commit that each bridge was loaded from, if it came from the hub."""


def load_bridge(
    name: str | Path | None = None,
    *,
    hf_model: nn.Module | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
    device_map: str | dict[str, str | int] | None = None,
    offload_folder: str | Path | None = None,
    prepend_bos: bool | None = None,
    fresh_head: bool = False,
) -> TransformerBridge:
    """Loads a model as a frozen `TransformerBridge` in eval mode.

    Args:
        name: an embedded organism ("facts-small"), a local directory or a hub name ("gpt2").
        hf_model: a model already in memory instead of a name. The bridge takes it over and changes
            it in place. The adapter of a `peft` model is merged into its weights, and a log message
            says so.
        tokenizer: its tokenizer; needed with `hf_model`, optional with a name.
        device: the target device. A model in 4 or 8 bits stays on its device.
        dtype: dtype of the weights, or its name ("bf16", "float16"). The default, which "auto"
            names too, is that of the checkpoint or of `hf_model`.
        device_map: spreads a named model over several devices, or the disk, as `from_pretrained` of
            transformers does; `device` is then ignored. Edits stay on the embedding's device, and
            the edited tokens are moved there. Tested with blocks on the disk and the rest on a CPU,
            not on several GPUs.
        offload_folder: folder for the weights that a `device_map` puts on the disk.
        prepend_bos: whether every text begins with BOS. The default is TransformerLens's default
            for the architecture, and False for a tokenizer without BOS. The value is stored in
            `bridge.cfg.default_prepend_bos`, which this package and TransformerLens read; a saved
            edit records it.
        fresh_head: accept random values for weights that the checkpoint lacks, such as the
            language-model head of a classifier's checkpoint.

    Raises:
        TypeError: If `hf_model` is not a model of transformers.
        ValueError: If the name is none of the three, the checkpoint lacks weights, the arguments do
            not fit together, there is no such device, or TransformerLens cannot take this
            architecture, or not in this dtype.
    """
    if (name is None) == (hf_model is None):
        raise ValueError("load_bridge needs either a name or hf_model=..., not both")
    dtype, commit = dtype_of(dtype), None
    if device_map is None:
        require_device(device)
    if hf_model is None:
        placed = {"device_map": device_map, "offload_folder": offload_folder} if device_map is not None else {}
        hf_model, loaded_tokenizer, commit = read_pretrained(str(name), dtype, fresh_head=fresh_head, placed=placed)
        tokenizer = tokenizer or loaded_tokenizer
    elif tokenizer is None:
        raise ValueError("load_bridge(hf_model=...) also needs the model's tokenizer: pass tokenizer=...")
    elif device_map is not None:
        raise ValueError("hf_model is already on its devices: pass device_map to its from_pretrained instead")
    elif is_quantized(hf_model) and dtype is not None:
        raise ValueError("hf_model is quantised, so its dtype cannot be changed: leave dtype out")
    model = plain_model(hf_model)
    _require_runnable(model, dtype or model.dtype)
    model, place = _placed(model, device, dtype)
    # TransformerLens chooses its adapter by this, and a model built from a config leaves it unset.
    model.config.architectures = [type(model).__name__]
    if prepend_bos and _first_token(tokenizer) is None:
        raise ValueError(
            "prepend_bos=True needs a tokenizer with a BOS token, and this one has none: leave prepend_bos out"
        )
    with nothing_installed(), _refused(model), _absent_parts_kept(model):
        bridge = TransformerBridge.boot_transformers(
            str(name or model.config.name_or_path or type(model).__name__),
            hf_model=model,
            tokenizer=_bootable(tokenizer),
            device=place,
            dtype=model.dtype,
        )
    # For a tokenizer without BOS, booting uses EOS as BOS and puts it before every text.
    bridge.tokenizer.bos_token, bridge.tokenizer.eos_token = tokenizer.bos_token, tokenizer.eos_token
    if prepend_bos is not None or _first_token(tokenizer) is None:
        bridge.cfg.default_prepend_bos = bool(prepend_bos)
    if commit is not None:
        _REVISIONS[bridge] = commit
    mend_attention(bridge)
    return freeze(bridge)


@contextmanager
def _refused(model: PreTrainedModel) -> Iterator[None]:
    """Converts TransformerLens's failures on a model into an error that names both libraries."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, NotImplementedError, TypeError) as error:
        raise ValueError(
            f"TransformerLens {version('transformer-lens')} does not support {type(model).__name__} of transformers "
            f"{version('transformers')} ({type(error).__name__}: {error}): choose a model that it supports"
        ) from error


@contextmanager
def _absent_parts_kept(model: PreTrainedModel) -> Iterator[None]:
    """Keeps None: booting creates empty parts for those that a config omits, such as Granite 4's rotary embeddings."""
    # A part that is None is either a plain attribute or a registered submodule.
    absent = [(m, name) for m in model.modules() for name, part in (vars(m) | m._modules).items() if part is None]
    yield
    for module, name in absent:
        part = module._modules.get(name)
        if not isinstance(part, GeneralizedComponent) or part.original_component is not None:
            continue
        delattr(module, name)
        setattr(module, name, None)
        if isinstance(part, RotaryEmbeddingBridge):
            # Each part has a copy of the config, and the attention parts would warn about missing
            # rotation.
            for own in (m.config for m in model.modules() if isinstance(m, GeneralizedComponent)):
                if own is not None:
                    own.positional_embedding_type = "none"


def _first_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Returns the token that a text can begin with: BOS, or an encoder's classification token."""
    first: str | None = tokenizer.bos_token or tokenizer.cls_token
    return first


def _bootable(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Copies the tokenizer, because the bridge changes the one it gets."""
    own = copy.deepcopy(tokenizer)
    # The bridge replaces a tokenizer that lacks these two attributes, and adds a token for a
    # missing EOS.
    own.init_kwargs.setdefault("name_or_path", "")
    own.init_kwargs["add_bos_token"] = True
    if own.eos_token is None:
        own.eos_token = own.pad_token or own.convert_ids_to_tokens(0)
    return own


def revision(bridge: TransformerBridge) -> str | None:
    """Returns the hub commit that `load_bridge` took the weights from; None if they came from elsewhere."""
    return _REVISIONS.get(bridge)


_DOUBLE = ("GPT2", "GPTNeoX", "Bert", "Roberta")
"""Prefixes of the classes whose padded batches were observed to stay finite in float64."""


def _placed(
    model: PreTrainedModel, device: str | torch.device, dtype: torch.dtype | None
) -> tuple[PreTrainedModel, str | None]:
    """Moves a model and returns its device. A model that is spread over devices (None) or quantised is not moved."""
    if getattr(model, "hf_device_map", None) is not None:
        return model, None
    if is_quantized(model):
        return model, str(model.device)
    return model.to(device=device, dtype=dtype or model.dtype), str(device)


def _require_runnable(hf_model: PreTrainedModel, dtype: torch.dtype) -> None:
    if dtype is torch.float64 and not type(hf_model).__name__.startswith(_DOUBLE):
        raise ValueError(
            f"{type(hf_model).__name__} cannot run in float64: transformers computes its softmax in float32, where a float64 "
            "attention mask becomes minus infinity and padded batches become NaN: pass dtype=torch.float32"
        )
    if type(hf_model).__name__.startswith("Olmo2") and dtype in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"TransformerLens 4.3 cannot run OLMo2 in {dtype} without a key-value cache (its queries stay in float32, its "
            "values do not): pass dtype=torch.float32"
        )


def freeze(bridge: TransformerBridge) -> TransformerBridge:
    """Puts the base in eval mode without gradients. Needed again after `enable_compatibility_mode`."""
    bridge.eval()
    # After booting, which splits fused q, k, v into new parameters: an earlier freeze misses them.
    bridge.requires_grad_(False)
    return bridge


def n_parameters(bridge: TransformerBridge) -> int:
    """Counts the base's parameters, tied ones once.

    It excludes a fused query-key-value matrix that the bridge has split and keeps, unused,
    alongside its parts.
    """
    model = bridge.original_model
    saved = model.state_dict().keys()
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name in saved)
