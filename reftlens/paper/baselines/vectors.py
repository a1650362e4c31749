"""Steering vectors that are computed, not trained, from activations of wanted texts and of others.

    difference of means   v = mean_i p_i - mean_i n_i              (Marks & Tegmark 2023, arXiv:2310.06824; DiffMean in AxBench)
    contrastive pairs     v = mean_i (p_i - n_i), pairs with one prompt, read at the answer    (CAA: arXiv:2312.06681)
    mean-centred          v = mean_i p_i - mean_j b_j, b ordinary texts of the model           (arXiv:2312.03813)
    PCA of differences    v = argmax_{|v|=1} sum_i (v . (p_i - n_i))^2                         (after RepE: arXiv:2310.01405)

The first two are the same formula: the mean of differences is the difference of means. They differ
in the data and in the tokens that are read. A mean does not depend on the spread of the texts. The
principal direction does: where the differences vary more than they agree, it is the direction in
which they vary, and not the concept's. (RepE centres its differences or draws their signs at
random. Here they are not centred, since that would remove the mean, which is what is asked for.)

A large difference is not evidence that the model uses it. `compare_steering` tests what a vector
does to the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.engine.activations import edited_activations
from reftlens.bridge import width_of
from reftlens.data import encode
from reftlens.edit.reft import Reft
from reftlens.edit.site import Site
from reftlens.interventions import SteeringVector
from reftlens.positions import Generated, LastOf, Positions

Rows = Float[Tensor, "_ d_model"]
Formula = Callable[[Rows, Rows, Rows], Tensor]
"""(wanted, other, ordinary) activations, one row per text -> a vector `[d_model]`. Only its direction is used."""

_AT_ONCE = 64


def mean_difference(wanted: Rows, other: Rows, ordinary: Rows) -> Float[Tensor, " d_model"]:
    """Computes mean(wanted) - mean(other). Of pairs it is the mean of their differences (CAA).

    Args:
        wanted: activations `[n, d_model]` of texts with the concept.
        other: activations of texts without it.
        ordinary: not used.
    """
    return wanted.mean(0) - other.mean(0)


def mean_centred(wanted: Rows, other: Rows, ordinary: Rows) -> Float[Tensor, " d_model"]:
    """Computes mean(wanted) - mean(ordinary), which needs no texts without the concept.

    Args:
        wanted: activations `[n, d_model]` of texts with the concept.
        other: not used.
        ordinary: activations of the model's own texts.
    """
    return wanted.mean(0) - ordinary.mean(0)


def principal_difference(wanted: Rows, other: Rows, ordinary: Rows) -> Float[Tensor, " d_model"]:
    """Computes the first right singular vector of the pairs' differences, with the sign of their mean.

    Args:
        wanted: activations `[n, d_model]` of texts with the concept.
        other: activations of their partners, in the same order.
        ordinary: not used.

    Raises:
        ValueError: If the texts are not pairs.
    """
    if wanted.shape != other.shape:
        raise ValueError(
            f"a difference of pairs needs as many wanted as other texts, got {len(wanted)} and {len(other)}"
        )
    differences = wanted - other
    first = torch.linalg.svd(differences.double(), full_matrices=False).Vh[0].to(differences)
    return first if float(first @ differences.mean(0)) >= 0 else -first


READ: dict[str, Positions] = {"completion": Generated(), "answer": LastOf(Generated())}
"""Which tokens of a completion are read: all of them, whose mean is taken, or the last one."""


@torch.no_grad()
def read_activations(
    bridge: TransformerBridge, texts: Sequence[tuple[str, str]], hook_name: str, *, read: str = "completion"
) -> Rows:
    """Computes one activation per text of the unedited model: the mean over the tokens that are read.

    Args:
        bridge: the model.
        texts: (prompt, completion) pairs.
        hook_name: where to read, such as `blocks.3.hook_resid_post`.
        read: a key of `READ`.

    Returns:
        `[n, d_model]`.

    Raises:
        ValueError: If there are no texts, a completion is empty, or the hook or `read` is unknown.
    """
    if read not in READ:
        raise ValueError(f"Unknown read {read!r}. Choose from: {', '.join(READ)}")
    if not texts or not all(completion for _, completion in texts):
        raise ValueError(f"a steering vector needs texts with completions to read, got {list(texts)[:3]}")
    # A zero vector changes nothing: it only names the tokens.
    still = SteeringVector(width_of(bridge, hook_name, None)).to(bridge.cfg.device)
    probe, found = Reft([(Site(hook_name, READ[read]), still)]), []
    for start in range(0, len(texts), _AT_ONCE):
        prompts, completions = zip(*texts[start : start + _AT_ONCE], strict=True)
        ((edit, rows),) = edited_activations(bridge, probe, encode(bridge, prompts, completions))
        # Every text has the weight of one, whatever its length.
        text = edit.mask.nonzero()[:, 0]
        total = rows.new_zeros(len(prompts), rows.shape[1]).index_add(0, text, rows)
        found.append(total / edit.mask.sum(1, keepdim=True))
    return torch.cat(found)
