"""The cells of a patching map: what each patch writes, and how cells form rows and columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import activation_shape, layer_of

_POINTS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "z": "attn.hook_z",
}
_WITH_HEADS = ("q", "k", "v", "z")
_AXES = {
    "positions": ("layer", "pos"),
    "heads": ("layer", "head"),
    "heads and positions": ("layer", "head", "pos"),
}


@final
@dataclass(frozen=True)
class Cell:
    """What one patch writes."""

    hook_names: tuple[str, ...]
    """One point, or the same point of neighbouring layers."""
    pos: int | None = None
    """The column; None for all."""
    head: int | None = None
    """The head, of activations that have them; None for all."""

    @property
    def layer(self) -> int:
        """The first layer written to."""
        return min(layer_of(name) or 0 for name in self.hook_names)


@final
@dataclass(frozen=True)
class Grid:
    """All cells of a map, row by row."""

    cells: tuple[Cell, ...]
    rows: tuple[str, ...]
    """What each row writes to; the head in brackets where there is one for each row."""
    names: tuple[str, ...]
    """The points, layer by layer."""
    axes: tuple[str, ...]
    """What rows and columns count, as TransformerLens names it."""


def grid(bridge: TransformerBridge, point: str, over: str, *, n_pos: int, window: int = 1) -> Grid:
    """Makes one cell per layer and position, layer and head, or layer, head and position.

    Args:
        bridge: the model.
        point: "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v" or "z".
        over: "positions", "heads" (each at all positions) or "heads and positions".
        n_pos: columns of the batch.
        window: number of neighbouring layers written together, centred on the row's layer.

    Raises:
        ValueError: If there is no such map.
    """
    for name, value, known in (("point", point, tuple(_POINTS)), ("over", over, tuple(_AXES))):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if over != "positions" and point not in _WITH_HEADS:
        raise ValueError(f"{point} is not split into heads: use point='z', 'q', 'k' or 'v', or over='positions'")
    if window < 1:
        raise ValueError(f"window must be at least 1 layer, got {window}")
    names = tuple(f"blocks.{layer}.{_POINTS[point]}" for layer in range(bridge.cfg.n_layers))
    # As in ROME: of an even window, the larger half lies before the row's own layer.
    windows = [names[max(0, i - window // 2) : i - window // 2 + window] for i in range(len(names))]
    # Keys and values may have fewer heads than queries.
    heads = range(activation_shape(bridge, names[0])[0]) if over != "positions" else range(0)
    columns = range(n_pos)
    rows = names
    if over == "positions":
        cells = [Cell(group, pos=pos) for group in windows for pos in columns]
    elif over == "heads":
        cells = [Cell(group, head=head) for group in windows for head in heads]
    else:
        rows = tuple(f"{name}[{head}]" for name in names for head in heads)
        cells = [Cell(group, pos, head) for group in windows for head in heads for pos in columns]
    return Grid(tuple(cells), rows, names, _AXES[over])
