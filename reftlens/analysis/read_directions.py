"""What does a write direction say? The change of the logits if it went straight to the unembedding.

A direction u with its root-mean-square size s is added to real final residuals: mean over prompts of
logits(h + s u) - logits(h), through the model's own final norm. Beside it, the same for random directions of that
length: a direct readout of any direction has some largest token. Tokens that were named before looking have a sharper
test, against their own change under random directions.

Not evidence of the path: later layers read the direction too, and may do most of the work.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.tokens import first_tokens
from reftlens.data import Batch, str_tokens
from reftlens.results import DirectionReadout, Operator


@torch.no_grad()
def read_directions(
    bridge: TransformerBridge,
    operator: Operator,
    batch: Batch,
    *,
    top: int = 6,
    watch: Sequence[str] = (),
    n_null: int = 200,
    seed: int = 0,
) -> list[DirectionReadout]:
    """Reads each write direction of a decomposed edit through the unembedding.

    Args:
        bridge: the base.
        operator: from `decompose`.
        batch: prompts whose last residuals the direction is added to.
        top: tokens listed on each side.
        watch: answers to test for, chosen beforehand, with their leading space; their first tokens count, and of
            several that begin alike the first is named.
        n_null: random directions for the null.
        seed: draws them.

    Raises:
        ValueError: if the edit is not as wide as the residual stream.
    """
    if operator.write.shape[1] != bridge.cfg.d_model:
        raise ValueError(
            f"the directions of {operator.hook_name} are {operator.write.shape[1]} wide, and only those of the residual "
            f"stream, {bridge.cfg.d_model} wide, can be read through the unembedding"
        )
    name = f"blocks.{bridge.cfg.n_layers - 1}.hook_resid_post"
    _, cache = bridge.run_with_cache(batch.tokens, attention_mask=batch.attention_mask, names_filter=[name])
    final = batch.at_last_prompt_token(cache[name])
    generator = torch.Generator().manual_seed(seed)
    d_model = operator.write.shape[1]
    random = torch.nn.functional.normalize(torch.randn(n_null, d_model, generator=generator), dim=-1)
    # Answers that begin with the same token are one test, and would be read as several.
    named: dict[int, str] = {}
    for token, answer in zip(first_tokens(bridge, watch).tolist(), watch, strict=True):
        named.setdefault(token, answer)
    watch, ids = tuple(named.values()), list(named)
    readouts = []
    for index, (direction, size) in enumerate(zip(operator.write, operator.spectrum, strict=True)):
        change = _mean_change(bridge, final, direction[None] * size)[0]
        null = _mean_change(bridge, final, random * size)
        high, low = change.topk(top), (-change).topk(top)
        readouts.append(
            DirectionReadout(
                hook_name=operator.hook_name,
                direction=index,
                promoted=_named(bridge, high.indices, high.values),
                suppressed=_named(bridge, low.indices, -low.values),
                null_low=float(null.amin(dim=1).quantile(0.05)),
                null_high=float(null.amax(dim=1).quantile(0.95)),
                n_null=n_null,
                watched=_watched(watch, ids, change, null),
            )
        )
    return readouts


def _mean_change(
    bridge: TransformerBridge, final: Float[Tensor, "batch d_model"], pushes: Float[Tensor, "n d_model"]
) -> Float[Tensor, "n d_vocab"]:
    """Mean over prompts of logits(final + push) - logits(final), one prompt at a time to bound memory."""
    from transformer_lens.tools.analysis.logit_lens import logit_readout

    total = torch.zeros(())
    for h in final:
        vectors = torch.cat([h[None], h + pushes.to(h)])
        logits = logit_readout(bridge, vectors).values.float().cpu()
        total = total + (logits[1:] - logits[:1])
    return total / len(final)


def _watched(
    watch: Sequence[str], ids: Sequence[int], change: Float[Tensor, " d_vocab"], null: Float[Tensor, "n d_vocab"]
) -> tuple[tuple[str, float, float], ...]:
    """Two-sided permutation p-values of single tokens: (1 + draws at least as far from zero) / (1 + draws)."""
    beyond = [int((null[:, token].abs() >= change[token].abs()).sum()) for token in ids]
    return tuple(
        (answer, float(change[token]), (1 + count) / (1 + len(null)))
        for answer, token, count in zip(watch, ids, beyond, strict=True)
    )


def _named(bridge: TransformerBridge, ids: Tensor, values: Tensor) -> tuple[tuple[str, float], ...]:
    return tuple(zip(str_tokens(bridge, ids), values.tolist(), strict=True))
