"""Merges an adapter of `peft` into the weights of its base, and proves that the outputs stay the same."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from reftlens.bridge.proving import TOLERANCE, difference


@torch.no_grad()
def merged_adapter(peft_model: Any) -> PreTrainedModel:
    """Merges the active adapter in place, and returns the base with the new weights, in eval mode.

    Args:
        peft_model: a model of `peft`.

    Raises:
        ValueError: If the adapter cannot be merged into weights, or the merged model has other
            outputs.
    """
    kind = type(peft_model).__name__
    base = peft_model.get_base_model()
    peft_model.eval()
    before = _logits(base)
    try:
        # peft warns of an output layer that is no longer the embedding's; the comparison below
        # decides what matters.
        with warnings.catch_warnings(action="ignore"):
            merged: PreTrainedModel = peft_model.base_model.merge_and_unload()
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(f"the adapter of this {kind} cannot be merged into weights: {error}") from error
    apart = difference(_logits(merged), before)
    if not apart <= TOLERANCE[merged.dtype]:
        # peft only warns: a change that belongs to the embedding also reaches an output layer that
        # shares its weight.
        raise ValueError(
            f"the adapter of this {kind} cannot be merged into weights: its logits would move by {apart:.2g} of their size. "
            "It may be on an embedding that shares its weight with the output layer: leave the embedding out of the adapter, "
            "or train it with modules_to_save"
        )
    return merged


def require_merged(hf_model: nn.Module) -> None:
    """Raises if a model has layers of `peft` inside, which a bridge would lose in part.

    Raises:
        ValueError: If it has.
    """
    inside = next((name for name, part in hf_model.named_modules() if type(part).__module__.startswith("peft.")), None)
    if inside is not None:
        raise ValueError(
            f"{type(hf_model).__name__} has an adapter of peft inside, at {inside} (add_adapter or load_adapter of "
            "transformers), which a bridge loses where it splits that layer: save the adapter, load it with "
            "peft.PeftModel.from_pretrained(base, folder), and pass that, which is merged"
        )


def _logits(model: PreTrainedModel) -> Float[Tensor, "batch pos d_vocab"]:
    given = {name: value.to(model.device) for name, value in model.dummy_inputs.items()}
    # By place: a model without a language-model head gives its last states, and is refused later,
    # by name.
    logits: Float[Tensor, "batch pos d_vocab"] = model(**given)[0]
    return logits
