"""Creates a model without weights on the meta device, from its config.

The configs of the paper's models are stored here, so that their parameters can be counted offline.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

from reftlens.organisms import ORGANISMS
from reftlens.paper.runs.presets import MODELS

_LLAMA: dict[str, Any] = {"architectures": ["LlamaForCausalLM"]}
_LLAMA_7B = LlamaConfig(**_LLAMA, vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
_ROBERTA: dict[str, Any] = {
    "architectures": ["RobertaForMaskedLM"],
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
}
_KNOWN: dict[str, PretrainedConfig] = {
    "llama-7b": _LLAMA_7B,
    "llama-13b": LlamaConfig(
        **_LLAMA,
        vocab_size=32000,
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
    ),
    "llama-2-7b": _LLAMA_7B,
    "llama-3-8b": LlamaConfig(
        **_LLAMA,
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_key_value_heads=8,
    ),
    "roberta-base": RobertaConfig(**_ROBERTA),
    "roberta-large": RobertaConfig(
        **_ROBERTA, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    ),
}
"""Sizes in the released configs, by the name in presets."""


def empty_model(name: str) -> PreTrainedModel:
    """Creates a model whose tensors have shapes but no data. An encoder has no head and no pooler.

    Args:
        name: one of the paper's models ("llama-7b" or its hub name), an organism, a local directory
            or a hub name.

    Raises:
        ValueError: If it is none of these.
    """
    config = _config(name)
    with init_empty_weights(include_buffers=True):
        if any(architecture.endswith("ForMaskedLM") for architecture in config.architectures or []):
            return AutoModel.from_config(config, add_pooling_layer=False)
        return AutoModelForCausalLM.from_config(config)


def _config(name: str) -> PretrainedConfig:
    short = {hub: short for short, hub in MODELS.items()}.get(name, name.lower())
    if short in _KNOWN:
        return _KNOWN[short]
    try:
        return AutoConfig.from_pretrained(str(ORGANISMS.get(name, name)))
    except (OSError, ValueError) as error:
        where = "the directory has no model config" if Path(name).is_dir() else "there is no such directory"
        raise ValueError(
            f"cannot find the shape of {name!r}: it is not one of {', '.join([*_KNOWN, *ORGANISMS])}, {where}, and fetching "
            f"its config from the Hugging Face Hub failed: {str(error).strip().splitlines()[0]}"
        ) from error
