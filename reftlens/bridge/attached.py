"""Finds hooks and replaced forwards that other code has attached to a model."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules import module as torch_module
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

_LIBRARIES = ("transformer_lens.", "transformers.", "accelerate.", "reftlens.bridge.caching")
"""Whose own hooks leave a model's numbers as they are."""


def foreign_hooks(bridge: TransformerBridge) -> list[str]:
    """Returns the names of modules with attached code that may change a run; none for a plain base.

    Edits that are currently attached count as well.
    """
    everywhere = (*torch_module._global_forward_hooks.values(), *torch_module._global_forward_pre_hooks.values())
    found = ["every module of torch"] if any(is_foreign(hook) for hook in everywhere) else []
    modules = {module: name for part in (bridge, bridge.original_model) for name, module in part.named_modules()}
    for module, name in modules.items():
        if any(is_foreign(hook) for hook in _attached(module)):
            plain = name.replace("._original_component", "") or type(module).__name__
            found.append(str(module.name) if isinstance(module, HookPoint) else plain)
    return list(dict.fromkeys(found))


def replaced_forwards(bridge: TransformerBridge) -> tuple[tuple[str, int], ...]:
    """Returns the modules whose forward has been replaced, with the replacing function."""
    found, seen, left = [], set[int](), [("", bridge.original_model)]
    # Not `named_modules`, whose nested generators took a fifth of a map of a narrow model.
    while left:
        name, module = left.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        forward = vars(module).get("forward")
        if forward is not None and is_foreign(forward):
            # The id is part of the key of a proof: two replacements of one module compute different
            # things.
            found.append((name, id(forward)))
        left += [(f"{name}.{part}", inner) for part, inner in module._modules.items() if inner is not None]
    return tuple(sorted(found))


def _attached(module: nn.Module) -> Iterator[object]:
    if isinstance(module, HookPoint):
        # Here TransformerLens wraps each hook in a function of its own.
        yield from (handle.user_hook for handle in module.fwd_hooks)
        return
    yield from module._forward_hooks.values()
    yield from module._forward_pre_hooks.values()
    # Assigning module.forward = f puts f in the instance, where it hides the class's method.
    if "forward" in vars(module):
        yield vars(module)["forward"]


def is_foreign(hook: object) -> bool:
    """Returns whether a hook or a replaced forward is not one of the libraries' own."""
    return not str(getattr(hook, "__module__", "")).startswith(_LIBRARIES)
