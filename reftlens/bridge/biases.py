"""Finds the bias that is added to the activation at a point, if the model has one."""

from __future__ import annotations

import re

from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

_LAST_MODULE = {
    "hook_attn_out": "attn.o",
    "hook_mlp_out": "mlp.out",
    "hook_resid_post": "mlp.out",
    "hook_out": "mlp.out",
}
"""The linear map whose output a point carries, or carries as one term of a sum."""


def output_bias(bridge: TransformerBridge, hook_name: str) -> tuple[str, str, Tensor]:
    """Returns the bias whose change may equal adding a vector at a point. The caller must check whether it does.

    Returns:
        Name of the point right after the linear map; Hugging Face's name of its bias; the bias.

    Raises:
        ValueError: If there is no such bias, or the weights are no longer Hugging Face's.
    """
    found = re.fullmatch(r"(blocks\.\d+)\.(\w+)", hook_name)
    if found is None or found[2] not in _LAST_MODULE:
        raise ValueError(
            f"{hook_name} is not the output of a linear map, so it has no bias of its own: only blocks.<n>."
            f"{', '.join(_LAST_MODULE)} are"
        )
    if bridge.compatibility_mode:
        raise ValueError(
            "compatibility mode has changed the weights of the Hugging Face model: merge before enabling it"
        )
    path = f"{found[1]}.{_LAST_MODULE[found[2]]}"
    linear = bridge.get_submodule(path)
    bias = linear.original_component.bias
    if bias is None:
        raise ValueError(
            f"{path} of {type(bridge.original_model).__name__} has no bias to merge the edit into: keep the edit as a hook"
        )
    # The bridge registers some maps a second time under its own name.
    names = bridge.original_model.named_parameters(remove_duplicate=False)
    plain = (name.replace("._original_component", "") for name, parameter in names if parameter is bias)
    name = next(name for name in plain if name.endswith(f".{linear.name}.bias"))
    return f"{path}.hook_out", name, bias
