"""Which tokens does a write direction promote and suppress? Logit readout: the direct path to the unembedding.

A direction u with root-mean-square size s is added to real final residuals. The readout is the mean
over prompts of logits(h + s u) - logits(h), through the model's final norm. The control is the same
for random directions of that length, because the readout of any direction has some largest token.

There are two tests for two questions. Does any token change more than expected by chance? This
covers all tokens, directions and sites, so the band corrects for all of them: in 95% of draws of
random directions, no token of any direction leaves the band (a max-statistic, each direction in
units of its own null). Does a token chosen beforehand change? This needs only that token's changes
under random directions, which give p. For several tokens or directions, `p_all` corrects for
multiple testing in the same way (Westfall & Young 1993). A chosen token can have a small p inside
the band.

Not evidence of the path: later layers read the direction too, and may contribute most of the
effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.engine.activations import final_residuals
from reftlens.bridge import each, mean_logit_changes, side_for_ends
from reftlens.data import Given, as_batch, as_texts, str_tokens
from reftlens.data.tokens import continuing, tokenizer_of
from reftlens.results import DirectionReadout, Operator

_DRAWS = 64
"""Random directions that are read at a time."""
LEVEL = 0.05
"""Probability under the null that any token of any direction leaves its band."""


@torch.no_grad()
def read_directions(
    bridge: TransformerBridge,
    operator: Operator | Sequence[Operator],
    prompts: Given,
    *,
    top: int = 6,
    watch: Sequence[str] = (),
    n_null: int = 200,
    seed: int = 0,
) -> list[DirectionReadout]:
    """Reads the write directions of a decomposed edit through the unembedding.

    Args:
        bridge: the base.
        operator: from `decompose`. Pass all sites that you examine at once, so that the correction
            covers all of them.
        prompts: texts, conversations or one batch. The direction is added to their last final
            residuals.
        top: tokens listed on each side.
        watch: answers to test, chosen beforehand, with their leading space. Their first tokens are
            tested. If several answers have the same first token, the first answer is named.
        n_null: random directions drawn for each direction; at least 19, for a 95% band.
        seed: seed of the random directions.

    Returns:
        One readout per direction, site by site.

    Raises:
        ValueError: If an edit does not have the width of the residual stream, or there are too few
            draws.
    """
    operators = [operator] if isinstance(operator, Operator) else list(operator)
    for item in operators:
        if item.write.shape[1] != bridge.cfg.d_model:
            raise ValueError(
                f"the unembedding reads directions of the residual stream, of width {bridge.cfg.d_model}; those of "
                f"{item.where} have width {item.write.shape[1]}"
            )
    # Rounded, because such a product may come out just below 1.
    if round(LEVEL * (n_null + 1), 9) < 1:
        raise ValueError(f"n_null must be at least 19 for a {1 - LEVEL:.0%} band, got {n_null}")
    final = final_residuals(bridge, as_batch(bridge, prompts, padding_side=side_for_ends(bridge)))
    generator = torch.Generator().manual_seed(seed)
    first = _by_first_token(bridge, watch)
    watch, ids = tuple(first.values()), list(first)
    looks = [_look(bridge, final, item, index, ids, n_null, generator) for item in operators for index in _all(item)]
    # Draw i of every direction together is one draw of the null for all of them.
    band = _critical(torch.stack([look.reach for look in looks]).amax(dim=0)) if looks else 0.0
    furthest = _named_reach(looks, ids)
    return [
        DirectionReadout(
            hook_name=look.hook_name,
            site=look.site,
            direction=look.direction,
            promoted=_named(bridge, *_top(look.change, top)),
            suppressed=_named(bridge, *_top(look.change, top, sign=-1)),
            null_low=band * look.low,
            null_high=band * look.high,
            n_null=n_null,
            watched=_watched(watch, look),
            p_all=tuple(_p(furthest, float(value)) for value in look.watched_size()),
            n_tokens=len(look.change),
            n_directions=len(looks),
            n_watched=len(set(ids)),
        )
        for look in looks
    ]


@final
@dataclass(frozen=True, eq=False)
class _Look:
    """One direction: its logit changes, and those of random directions of the same length."""

    hook_name: str
    site: str
    direction: int
    change: Float[Tensor, " d_vocab"]
    low: float
    """Median over draws of the most negative change of any token."""
    high: float
    reach: Float[Tensor, " draw"]
    """The furthest token of each draw, in units of `low` and `high`."""
    watched: Float[Tensor, " answer"]
    watched_null: Float[Tensor, "draw answer"]

    def watched_size(self) -> Float[Tensor, " answer"]:
        """|change| of the chosen tokens, in units that make tokens comparable."""
        return self.watched.abs() / self._unit()

    def null_size(self) -> Float[Tensor, "draw answer"]:
        """The same for each draw."""
        return self.watched_null.abs() / self._unit()

    def _unit(self) -> Float[Tensor, " answer"]:
        # The direction itself is included among the draws; otherwise few draws would make it look
        # large.
        return torch.cat([self.watched[None], self.watched_null]).square().mean(dim=0).sqrt()


def _by_first_token(bridge: TransformerBridge, watch: Sequence[str]) -> dict[int, str]:
    """Returns the answers by their first token: those with the same one are one test, named by the first of them."""
    first: dict[int, str] = {}
    for answer in as_texts(watch, "watch") if len(watch) else []:
        first.setdefault(continuing(tokenizer_of(bridge), answer)[0], answer)
    return first


def _all(operator: Operator) -> range:
    return range(len(operator.write))


def _look(
    bridge: TransformerBridge,
    final: Float[Tensor, "batch d_model"],
    operator: Operator,
    index: int,
    ids: Sequence[int],
    n_null: int,
    generator: torch.Generator,
) -> _Look:
    size = operator.spectrum[index]
    change = mean_logit_changes(bridge, final, operator.write[index][None] * size)[0]
    random = torch.nn.functional.normalize(torch.randn(n_null, operator.write.shape[1], generator=generator), dim=-1)
    # In parts, because the changes of all tokens under all draws would not fit beside a large
    # vocabulary.

    def ends(some: Float[Tensor, "draw d_model"]) -> tuple[Tensor, Tensor, Tensor]:
        null = mean_logit_changes(bridge, final, some * size)
        return null.amin(dim=1), null.amax(dim=1), null[:, list(ids)]

    found = each(bridge, ends, random.split(_DRAWS))
    lows, highs, watched = (torch.cat(parts) for parts in zip(*found, strict=True))
    # The direction is one of the draws, as in `_unit`. 1e-30 keeps the sign for the division below.
    low = min(float(torch.cat([change.amin()[None], lows]).median()), -1e-30)
    high = max(float(torch.cat([change.amax()[None], highs]).median()), 1e-30)
    reach = torch.maximum(lows / low, highs / high)
    return _Look(operator.hook_name, operator.site, index, change, low, high, reach, change[list(ids)], watched)


def _critical(reach: Float[Tensor, " draw"]) -> float:
    """Returns the value that a further draw of the null exceeds with probability at most `LEVEL`."""
    # The tested direction is one more draw. 1e-9: a whole product may come out just below.
    allowed = int(LEVEL * (len(reach) + 1) + 1e-9)
    return float(reach.sort(descending=True).values[allowed - 1])


def _named_reach(looks: Sequence[_Look], ids: Sequence[int]) -> Float[Tensor, " draw"]:
    """Returns the largest change of a chosen token in each draw, over all directions."""
    if not looks or not ids:
        return torch.zeros(0)
    return torch.stack([look.null_size().amax(dim=1) for look in looks]).amax(dim=0)


def _p(null: Float[Tensor, " draw"], size: float) -> float:
    return (1 + int((null >= size).sum())) / (1 + len(null))


def _top(change: Float[Tensor, " d_vocab"], top: int, *, sign: int = 1) -> tuple[Tensor, Tensor]:
    found = (sign * change).topk(top)
    return found.indices, sign * found.values


def _watched(watch: Sequence[str], look: _Look) -> tuple[tuple[str, float, float], ...]:
    """Computes two-sided permutation p-values of single tokens: (1 + draws at least as far from zero) / (1 + draws)."""
    p_values = [
        _p(null.abs(), float(value.abs())) for value, null in zip(look.watched, look.watched_null.T, strict=True)
    ]
    return tuple(zip(watch, look.watched.tolist(), p_values, strict=True))


def _named(bridge: TransformerBridge, ids: Tensor, values: Tensor) -> tuple[tuple[str, float], ...]:
    return tuple(zip(str_tokens(bridge, ids), values.tolist(), strict=True))
