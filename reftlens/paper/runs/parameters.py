"""Counts the parameters that a preset trains, and their fraction of the base model, without loading weights.

An edit of rank r and width d has 2rd + r parameters (rd + r if its target is constant), for each
layer and each untied part of its positions. LoRA of rank r has r (in + out) per weight matrix, DoRA
`out` more. (Wu et al. 2024, section 4; Hu et al. 2021, arXiv:2106.09685; Liu et al. 2024,
arXiv:2402.09353, eq. 5: one magnitude per output row.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import pandas as pd
import torch
from torch import nn
from transformers import PreTrainedModel

from reftlens.interventions import Intervention, known_kinds
from reftlens.paper.runs.config import RunConfig
from reftlens.paper.runs.presets import Adapter
from reftlens.paper.runs.shapes import empty_model
from reftlens.positions import parse, union_parts


@final
@dataclass(frozen=True)
class ParameterCount:
    """Parameters that are trained in addition to a base model."""

    parts: Mapping[str, int]
    """Number of trained parameters by part."""
    base: int
    """Number of parameters of the base model."""

    @property
    def trained(self) -> int:
        """Total number of trained parameters."""
        return sum(self.parts.values())

    @property
    def percent(self) -> float:
        """Trained parameters in percent of the base's, as the paper reports them for edits."""
        return 100 * self.trained / self.base

    @property
    def percent_of_both(self) -> float:
        """Trained parameters in percent of base plus adapter, as `peft` reports them."""
        return 100 * self.trained / (self.base + self.trained)

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per part."""
        return pd.DataFrame({"where": list(self.parts), "trained": list(self.parts.values())})

    def __repr__(self) -> str:
        return f"ParameterCount({self.trained:,} trained, {self.percent:.6f}% of {self.base:,})"


def count_parameters(row: RunConfig | Adapter, *, model: str | None = None) -> ParameterCount:
    """Counts the parameters that a run, or a row of LoRA or DoRA, trains.

    Args:
        row: its settings.
        model: a base that replaces the row's.

    Raises:
        ValueError: If the model's shape cannot be found, or it lacks the trained layers or
            matrices.
    """
    base = empty_model(model or row.model)
    parts = _of_edit(row, base) if isinstance(row, RunConfig) else _of_adapter(row, base)
    return ParameterCount(parts, sum(parameter.numel() for parameter in base.parameters()))


def method_named(name: str) -> type[Intervention]:
    """Returns an intervention by its class name, in upper or lower case.

    Raises:
        ValueError: If there is none.
    """
    for kind in known_kinds():
        if kind.__name__.lower() == name.lower():
            return kind
    raise ValueError(f"Unknown method {name!r}. Choose from: {', '.join(kind.__name__ for kind in known_kinds())}")


_IN_RESIDUAL = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")


def _of_edit(config: RunConfig, base: PreTrainedModel) -> dict[str, int]:
    shape = base.config.get_text_config()
    kind, rule = method_named(config.method), parse(config.positions)
    if config.hook not in _IN_RESIDUAL:
        raise ValueError(
            f"the width of {config.hook} is unknown without loading the model: choose from {', '.join(_IN_RESIDUAL)}"
        )
    layers = range(shape.num_hidden_layers) if config.layers == "all" else config.layers
    for layer in layers:
        if not -shape.num_hidden_layers <= layer < shape.num_hidden_layers:
            raise ValueError(f"layer {layer} does not exist: the model has layers 0 to {shape.num_hidden_layers - 1}")
    sizes = {} if config.rank is None else {"rank": config.rank}
    parts = {}
    # Only shapes are counted, and a 13B model's edits would otherwise be initialised.
    with torch.device("meta"):
        for layer in layers:
            for part in [rule] if config.tied else union_parts(rule):
                edit = kind(shape.hidden_size, **sizes)
                # A layer may be counted from the end, as -1.
                place = f"blocks.{layer % shape.num_hidden_layers}.{config.hook} at {part!r}"
                parts[place] = sum(parameter.numel() for parameter in edit.parameters())
    return parts


def _of_adapter(row: Adapter, base: PreTrainedModel) -> dict[str, int]:
    magnitude = 1 if row.method == "DoRA" else 0
    parts = dict.fromkeys(row.targets, 0)
    for name, module in base.named_modules():
        target = name.rpartition(".")[2]
        if target in parts and isinstance(module, nn.Linear):
            into, out = module.in_features, module.out_features
            parts[target] += row.rank * (into + out) + magnitude * out
    absent = [target for target, count in parts.items() if not count]
    if absent:
        raise ValueError(
            f"the model has no linear layers named {', '.join(absent)}, because {row.name} is for {row.model}"
        )
    return {f"{target}, all layers": count for target, count in parts.items()}
