"""Loads the Hugging Face model that a bridge is made from: from a checkpoint, or a model in memory.

Loading a checkpoint does not run its code or install anything. It uses random weights only if the
caller allows them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformer_lens.model_bridge.sources.transformers import source as boot_source
from transformer_lens.model_bridge.sources.transformers.helpers import get_hf_model_class_for_architecture
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from reftlens.bridge.merging import merged_adapter, require_merged
from reftlens.organisms import ORGANISMS

logger = logging.getLogger(__name__)

_DTYPES = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "half": torch.float16,
    "fp32": torch.float32,
    "float32": torch.float32,
    "float": torch.float32,
    "fp64": torch.float64,
    "float64": torch.float64,
    "double": torch.float64,
}


def dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Returns a dtype by its name, such as "bf16", "bfloat16" or "torch.bfloat16". A dtype is returned unchanged, "auto" as None.

    Raises:
        ValueError: If the name is unknown, or the dtype is not one that weights can have.
    """
    if dtype == "auto":
        return None
    found = _DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if (dtype is not None and found is None) or (found is not None and found not in _DTYPES.values()):
        raise ValueError(f"dtype must be one of auto, {', '.join(_DTYPES)} or the torch.dtype, got {dtype!r}")
    return found


def require_device(device: str | torch.device) -> None:
    """Raises if this machine or this build of torch does not have a device.

    Raises:
        ValueError: If there is no such device.
    """
    try:
        wanted = torch.device(device)
        # torch.device accepts any index; only an allocation shows whether the device exists.
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        here = "cpu" + (f" and cuda:0 to cuda:{torch.cuda.device_count() - 1}" if torch.cuda.is_available() else "")
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"device={str(device)!r} cannot be used here: {reason}. This machine has {here} for torch {torch.__version__}"
        ) from error


@contextmanager
def nothing_installed() -> Iterator[None]:
    """Keeps TransformerLens from loading an image or audio processor, which would access the hub and need torchvision.

    Edits need the language model and its tokenizer only.
    """
    before = boot_source.load_modality_processor
    boot_source.load_modality_processor = lambda *_args, **_kwargs: None
    try:
        yield
    finally:
        boot_source.load_modality_processor = before


def read_pretrained(
    name: str, dtype: torch.dtype | None, *, fresh_head: bool, placed: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str | None]:
    """Loads the model of a checkpoint, its tokenizer, and the hub commit that they are from.

    Args:
        name: an embedded organism, a local directory or a hub name.
        dtype: of the weights; as stored if None.
        fresh_head: whether weights that the checkpoint lacks may be random.
        placed: further arguments of `from_pretrained`.

    Raises:
        ValueError: If the checkpoint cannot be read, or lacks weights that the model needs.
    """
    source = str(ORGANISMS.get(name, name))
    try:
        # One file first: a name that does not exist should not be looked up once for every kind of
        # file.
        config_file = cached_file(source, "config.json")
        # False, not absent: transformers would ask on the terminal whether to run a checkpoint's
        # code.
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        model, info = _auto_class(config).from_pretrained(
            source,
            # "auto" is the checkpoint's dtype; TransformerLens by itself would load float32.
            dtype=dtype or "auto",
            attn_implementation="eager",
            trust_remote_code=False,
            output_loading_info=True,
            **placed,
        )
    except (OSError, ValueError) as error:
        where = "the directory could not be read as a model" if Path(source).is_dir() else "there is no such directory"
        raise ValueError(
            f"cannot load the model {name!r}: it is not an embedded organism ({', '.join(sorted(ORGANISMS))}), {where}, and "
            f"fetching it from the Hugging Face Hub failed: {str(error).strip().splitlines()[0]}"
        ) from error
    made_up = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if made_up and not fresh_head:
        stored = ", ".join(config.architectures or ["unnamed"])
        more = f" and {len(made_up) - 4} more" if len(made_up) > 4 else ""
        raise ValueError(
            f"the checkpoint {name!r} ({stored}) lacks weights of {type(model).__name__}: {', '.join(made_up[:4])}{more}. They "
            "would be random: load a checkpoint with a language-model head, or pass fresh_head=True to accept random weights"
        )
    if made_up:
        logger.warning("%s: these weights are random, because fresh_head=True: %s", name, ", ".join(made_up))
    return model, tokenizer, extract_commit_hash(config_file, None)


def _auto_class(config: PretrainedConfig) -> Any:
    """Returns the transformers class that loads a checkpoint with the head that TransformerLens needs."""
    architectures = config.architectures or []
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        return AutoModelForCausalLM
    known = [name for name in architectures if "For" in name and name in SUPPORTED_ARCHITECTURES]
    if known:
        return get_hf_model_class_for_architecture(known[0])
    # A headless or a classifier's checkpoint: the head of its kind is missing, and is named.
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_encoder_decoder", False)
    return AutoModelForMaskedLM if masked and not getattr(config, "is_decoder", False) else AutoModelForCausalLM


def plain_model(hf_model: nn.Module) -> PreTrainedModel:
    """Returns the plain model inside a wrapper. An adapter of `peft` is merged into its weights.

    Raises:
        TypeError: If it is not a model of transformers.
        ValueError: If it is compiled, its adapter cannot be merged, or it belongs to a bridge
            already.
    """
    # First, because a compiled wrapper hides the class of the model inside.
    if type(hf_model).__name__ == "OptimizedModule" or getattr(hf_model, "_compiled_call_impl", None) is not None:
        raise ValueError(
            "hf_model is compiled by torch.compile, which ignores the hooks of a bridge: pass the original model "
            "(compiled._orig_mod, or a model on which .compile() was not called)"
        )
    # By name, since peft is optional and may not be installed.
    if type(hf_model).__module__.startswith("peft."):
        kind, hf_model = type(hf_model).__name__, merged(hf_model)
        logger.warning(
            "hf_model is a %s: the bridge uses its base, %s, with the active adapter merged into the weights. For the base "
            "without the adapter, pass hf_model.unload()",
            kind,
            type(hf_model).__name__,
        )
    require_merged(hf_model)
    if any(type(module).__module__.startswith("transformer_lens.") for module in hf_model.modules()):
        raise ValueError(
            "hf_model already belongs to a bridge, and a second bridge would make every hook fire twice: use the first "
            "bridge, or load the model again"
        )
    if not isinstance(hf_model, PreTrainedModel):
        raise TypeError(f"hf_model must be a model of transformers, got {type(hf_model).__name__}")
    return hf_model


def merged(peft_model: Any) -> PreTrainedModel:
    """Merges the adapter of a `peft` model in place.

    Raises:
        TypeError: If its base is not a model of transformers.
        ValueError: If that cannot be done exactly.
    """
    base = peft_model.get_base_model()
    if not isinstance(base, PreTrainedModel):
        raise TypeError(f"hf_model must be a model of transformers, got peft on {type(base).__name__}")
    kind = type(peft_model).__name__
    if is_quantized(base):
        raise ValueError(
            f"hf_model is a {kind} on a quantised base, and its adapter cannot be merged into that exactly: pass "
            "hf_model.unload() to use the base without the adapter, or merge before quantising"
        )
    if not callable(getattr(peft_model.base_model, "merge_and_unload", None)):
        raise ValueError(
            f"hf_model is a {kind} whose adapter ({peft_model.active_peft_config.peft_type}) cannot be merged into weights: "
            "pass hf_model.get_base_model() to use the base without it"
        )
    return merged_adapter(peft_model)


def is_quantized(hf_model: nn.Module) -> bool:
    """Returns whether a model's weights are in 4 or 8 bits, so that their device and dtype cannot change."""
    return getattr(hf_model, "quantization_method", None) is not None or bool(getattr(hf_model, "is_quantized", False))
