"""LoRA and DoRA with Hugging Face's `peft`, inside the bridge.

LoRA (Hu et al. 2022, arXiv:2106.09685): W + (alpha / r) B A, with B initialised to 0. DoRA (Liu et
al. 2024, arXiv:2402.09353) splits W + (alpha / r) B A into a trained magnitude per output and a
direction. The matrix names are TransformerLens's, so one setting fits every architecture. A fused
query-key-value matrix is adapted in its three parts. There is no dropout: the base always stays in
eval mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, final

from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers.pytorch_utils import Conv1D

from reftlens.numbers import require_number, require_whole_number
from reftlens.paper.baselines.base import Method
from reftlens.training.objectives import Objective
from reftlens.training.objectives.base import Example


@final
@dataclass(frozen=True, kw_only=True)
class LoRA(Method):
    """Low-rank changes of weight matrices."""

    rank: int = 4
    alpha: float | None = None
    """The change is scaled by alpha / rank; alpha is 2 * rank by default."""
    matrices: tuple[str, ...] = ("attn.q", "attn.v")
    """Matrices of every block: attn.q, attn.k, attn.v, attn.o, mlp.in, mlp.out and, in gated MLPs, mlp.gate."""
    layers: Sequence[int] | Literal["all"] = "all"
    """Blocks whose matrices are adapted."""
    dora: bool = False
    """Use DoRA instead of LoRA."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole_number("rank", self.rank, least=1)
        if self.alpha is not None:
            require_number("alpha", self.alpha, above=0)

    @contextmanager
    def applied(self, bridge: TransformerBridge, objective: Objective, example: Example) -> Iterator[None]:
        layers = range(bridge.cfg.n_layers) if self.layers == "all" else self.layers
        outside = [layer for layer in layers if not 0 <= layer < bridge.cfg.n_layers]
        if outside:
            raise ValueError(f"layer {outside[0]} does not exist: the model has layers 0 to {bridge.cfg.n_layers - 1}")
        components = [_component(bridge, layer, name) for layer in layers for name in self.matrices]
        before = [component.original_component for component in components]
        adapted = self._adapt(before)
        try:
            for component, module in zip(components, adapted, strict=True):
                component.set_original_component(module)
            yield
        finally:
            for component, module in zip(components, before, strict=True):
                component.set_original_component(module)

    def strength(self, bridge: TransformerBridge) -> list[Tensor]:
        # Not A: scaled with B, the change would grow as the square. B starts at 0, DoRA's
        # magnitudes at those of the base.
        return [
            value
            for name, value in bridge.named_parameters()
            if value.requires_grad and "lora_A" not in name.split(".")
        ]

    def _adapt(self, linears: list[nn.Module]) -> list[nn.Module]:
        """Wraps each linear map in an adapter, which holds the map itself."""
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ImportError("LoRA and DoRA need peft: pip install 'reftlens[peft]'") from error
        adapted: dict[int, nn.Module] = {}
        # One config per kind of layer, because fan_in_fan_out holds for all of its layers.
        for kind in dict.fromkeys(map(type, linears)):
            # peft searches a module for the layers to adapt, so it gets a module that holds only
            # this one.
            places = [place for place, linear in enumerate(linears) if type(linear) is kind]
            box = nn.ModuleDict({str(place): linears[place] for place in places})
            config = LoraConfig(
                r=self.rank,
                lora_alpha=2 * self.rank if self.alpha is None else self.alpha,
                target_modules=list(box),
                use_dora=self.dora,
                # GPT-2's Conv1D stores its weight as [in, out].
                fan_in_fan_out=kind is Conv1D,
            )
            inject_adapter_in_model(config, box)
            adapted |= {place: box[str(place)] for place in places}
        return [adapted[place] for place in range(len(linears))]


def _component(bridge: TransformerBridge, layer: int, name: str) -> Any:
    """Returns the bridge's wrapper of one linear map of a block."""
    part, _, matrix = name.partition(".")
    component = getattr(getattr(bridge.blocks[layer], part, None), matrix, None)
    if not isinstance(getattr(component, "original_component", None), nn.Linear | Conv1D):
        raise ValueError(
            f"block {layer} has no linear map {name!r}: choose from attn.q, attn.k, attn.v, attn.o, mlp.in, mlp.out and "
            "mlp.gate, as far as the model has them"
        )
    return component
