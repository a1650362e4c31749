"""Finds the Hugging Face module that reads or writes an activation point, for models that are not wrapped in a bridge.

TransformerLens's adapter of the architecture says which module each of its components is. A point
that is the input or the output of one module can be hooked there. Other points, such as
`hook_resid_mid`, exist only in a bridge.
"""

from __future__ import annotations

import copy
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reftlens.bridge.loading import load_bridge


class HFPoint(NamedTuple):
    """One side of a module."""

    module: nn.Module
    side: Literal["in", "out"]


def hf_points(model: PreTrainedModel, hook_names: list[str]) -> dict[str, HFPoint]:
    """Finds the modules of several points: hook name -> module and side.

    Raises:
        ValueError: If a point is not the input or the output of a module of the model, or
            TransformerLens does not know the architecture.
    """
    architecture = type(model).__name__
    config = build_bridge_config_from_hf(model.config, architecture, architecture, model.dtype)
    adapter = ArchitectureAdapterFactory.select_architecture_adapter(config)
    found = {}
    for hook_name in dict.fromkeys(hook_names):
        path, side = _path_of(adapter.get_component_mapping(), hook_name)
        module = None if side is None else _module(adapter, model, path)
        if side is None or module is None:
            raise ValueError(
                f"{hook_name!r} is not the input or the output of a module of {architecture}, so it cannot be hooked without a "
                "bridge: use rl.load_bridge and reft.hooks, or an edit at hook_resid_pre, hook_resid_post, hook_attn_out or "
                "hook_mlp_out"
            )
        found[hook_name] = HFPoint(module, side)
    return found


def twin_bridge(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> TransformerBridge:
    """Makes a bridge of a model that shares its weights and leaves the model itself as it is.

    TransformerLens replaces modules of the model that it wraps. So the modules are copied, and the
    tensors are not.
    """
    tensors: list[torch.Tensor] = [*model.parameters(), *model.buffers()]
    shared: dict[int, Any] = {}
    for tensor in tensors:
        # Detaching shares the memory, and leaves requires_grad of the model as it is.
        own = tensor.detach()
        shared[id(tensor)] = nn.Parameter(own, requires_grad=False) if isinstance(tensor, nn.Parameter) else own
    # deepcopy takes the objects in its memo as copied already.
    twin = copy.deepcopy(model, shared)
    return load_bridge(hf_model=twin, tokenizer=tokenizer, device=model.device)


def _path_of(mapping: Any, hook_name: str) -> tuple[str, Literal["in", "out"] | None]:
    """Resolves a name to the path of a component and one side of it; None if it is neither side of a component."""
    *path, point = hook_name.split(".")
    # An alias may lead to a further alias; the limit ends a circle.
    for _ in range(4):
        component = _component(mapping, path)
        if component is None:
            break
        if point in ("hook_in", "hook_out"):
            return ".".join(path), "in" if point == "hook_in" else "out"
        alias = (component.hook_aliases or {}).get(point)
        # A list of names: which one applies is only known on a built bridge.
        if not isinstance(alias, str):
            break
        *further, point = alias.split(".")
        path = [*path, *further]
    return hook_name, None


def _component(mapping: Any, path: list[str]) -> Any:
    """Returns the component at a path, such as ["blocks", "3", "attn"]; None if there is none."""
    # The mapping describes one block for all layers, so the layer is not part of its paths.
    inside = [part for part in path if not part.isdigit()]
    component, parts = None, mapping
    for part in inside:
        component = parts.get(part)
        if component is None:
            return None
        parts = component.submodules
    return component


def _module(adapter: Any, model: PreTrainedModel, path: str) -> nn.Module | None:
    try:
        module = adapter.get_component(model, path)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None
    return module if isinstance(module, nn.Module) else None
