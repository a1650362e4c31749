"""The averaged Jacobian from a block's output to the last block's output, by TransformerLens' `JacobianLens`.

TransformerLens fits and loads it (Gurnee et al. 2026). Here are the rules for which matrix reads
which activation point, and for prompts shorter than the 16 tokens that its default skips.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge.points import canonical_hook, layer_of
from reftlens.bridge.probe import alone
from reftlens.bridge.threads import one_thread

_SKIP = 16
"""First tokens that TransformerLens leaves out by default: attention sinks."""


@final
@dataclass(frozen=True, eq=False)
class Lens:
    """Averaged Jacobians of one model. The one behind the last block is the identity."""

    jacobians: Mapping[int, Float[Tensor, "d_model d_model"]]
    """Layer -> Jacobian of the last block's output with respect to this block's."""
    n_layers: int

    def through(self, layer: int, vectors: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Carries vectors at the output of a block to the output of the last block, in float32.

        Args:
            layer: of the block.
            vectors: changes there, or whole activations.

        Raises:
            ValueError: If the lens does not have this layer.
        """
        if layer == self.n_layers - 1:
            return vectors.float()
        if layer not in self.jacobians:
            raise ValueError(
                f"this lens has layers {sorted(self.jacobians)}, but block {layer} is to be read: fit it for this layer as well"
            )
        return vectors.float() @ self.jacobians[layer].T


def lens_layer(bridge: TransformerBridge, hook_name: str) -> int:
    """Returns the block whose output this point is.

    Args:
        bridge: the model.
        hook_name: a point of the residual stream between blocks.

    Raises:
        ValueError: If it is another point.
    """
    name = canonical_hook(bridge, hook_name)
    layer = layer_of(name)
    if layer is not None and name == f"blocks.{layer}.hook_out":
        return layer
    if layer and name == f"blocks.{layer}.hook_in":
        return layer - 1
    raise ValueError(f"a Jacobian lens reads outputs of blocks, such as blocks.3.hook_resid_post, but not {hook_name}")


def fit_lens(bridge: TransformerBridge, texts: Sequence[str], layers: Sequence[int]) -> Lens:
    """Fits the lens by TransformerLens' own estimator: d_model backward passes for each text.

    The Jacobian is averaged over source tokens, and summed over later tokens. A quarter of the
    shortest text is skipped at the beginning, at most 16 tokens.

    Args:
        bridge: the base, without compatibility mode.
        texts: of at least three tokens.
        layers: the blocks whose outputs are to be read.

    Raises:
        ValueError: If the model or the texts do not allow it.
    """
    from transformer_lens.tools.analysis.jacobian_lens import JacobianLens

    last = bridge.cfg.n_layers - 1
    wanted = sorted({layer for layer in layers if layer < last})
    if not wanted:
        return Lens({}, last + 1)
    shortest = min(bridge.to_tokens(text).shape[1] for text in texts)
    if shortest < 3:
        raise ValueError(f"a Jacobian lens is fitted on texts of at least 3 tokens, the shortest has {shortest}")
    # Callers run without gradients, and hooks of an edit would be fitted into the lens.
    with one_thread(bridge), alone(bridge), torch.enable_grad():
        found = JacobianLens.fit(
            bridge,
            list(texts),
            corpus="the prompts of an analysis",
            source_layers=wanted,
            dim_batch=min(64, bridge.cfg.d_model),
            skip_first_positions=min(_SKIP, shortest // 4),
            show_progress=False,
        )
    return Lens(found.jacobians, last + 1)


def load_lens(bridge: TransformerBridge, path: str | Path) -> Lens:
    """Reads a published lens from a file (`.pt`), without running code from it.

    Args:
        bridge: the base. A lens of another model is refused.
        path: the file.

    Raises:
        ValueError: If it is no such file, or a lens of another model.
        OSError: If it cannot be opened.
    """
    from transformer_lens.tools.analysis.jacobian_lens import JacobianLens

    if not Path(path).is_file():
        raise ValueError(f"lens must be a file with a Jacobian lens (.pt), got {str(path)!r}, which is no file")
    try:
        found = JacobianLens.load(str(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} does not hold a Jacobian lens: {error!s:.300}") from error
    try:
        found.validate_model(bridge)
    except ValueError as error:
        raise ValueError(f"the lens in {path} does not fit this model: {error}") from error
    # A NaN in one matrix would only show as a readout without names.
    if not all(bool(matrix.isfinite().all()) for matrix in found.jacobians.values()):
        raise ValueError(f"the lens in {path} holds numbers that are not finite: fit or download it again")
    return Lens(found.jacobians, bridge.cfg.n_layers)
