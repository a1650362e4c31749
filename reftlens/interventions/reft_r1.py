"""ReFT-r1: one direction that detects a concept and steers towards it.

Unlike in the other interventions, the push of a token depends on the other edited tokens of its
example, so A and c do not exist. Analyses that need them raise `NotAffineError`. Analyses that read
only the change (edit size, effect maps, outcomes and their placebos) work as usual.
"""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reftlens.interventions.base import Affine, Intervention, NotAffineError, promote
from reftlens.interventions.orthonormal import Orthonormal
from reftlens.numbers import require_whole_number


@final
class ReFTr1(Intervention):
    """ReFT-r1: h + m v, |v| = 1, m the mean of the k largest ReLU(h . v) of the example (arXiv:2501.17148).

    (Wu et al. 2025, AxBench.) The maximum runs over the edited tokens of an example. An example
    with fewer than k edited tokens uses the mean of all of them. If generated tokens are edited
    too, training counts the whole completion, as in the paper's code, and decoding counts the
    tokens so far. v is rescaled to length 1 after each step; the reference code rescales it before.
    Training can add a penalty on the scores that are not among the k largest: see `l1`.
    """

    kind = "reft-r1"
    arguments = ("d_model", "k")

    def __init__(self, d_model: int, k: int = 1) -> None:
        """Args: d_model: width of the activation. k: number of tokens per example that set the size of the push.

        Raises:
            ValueError: If k is below 1.
        """
        super().__init__(d_model, rank=1)
        require_whole_number("k", k, least=1)
        self.k = k
        self.direction = Orthonormal(1, d_model)

    @property
    def v(self) -> Float[Tensor, " d_model"]:
        """The direction, of length 1."""
        return self.direction()[0]

    def detect(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "..."]:
        """Computes the concept's score at each token, ReLU(h . v), in the units of the activation.

        Args:
            resid: activations.
        """
        h = promote(resid, self.direction.weight)
        return torch.relu(h @ self.v.to(h.dtype))

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        tokens = resid.reshape(-1, self.d_model)
        per_example = resid.shape[-2] if resid.ndim > 1 else 1
        example = torch.arange(len(tokens), device=resid.device) // max(per_example, 1)
        return self.delta_of(tokens, example).reshape(resid.shape)

    def delta_of(self, tokens: Float[Tensor, "n d_model"], example: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        score = self.detect(tokens)
        push = _mean(score, self._strongest(score, example), example)[example]
        return (push[:, None] * self.v.to(push.dtype)).to(tokens.dtype)

    def l1(
        self, tokens: Float[Tensor, "n d_model"], example: Int[Tensor, " n"], n_examples: int
    ) -> Float[Tensor, " n_examples"]:
        """Sums the scores outside the k largest and divides by the example's number of tokens.

        The paper sums them; its code divides as well. That code increases the term's factor from 0
        during the run, while `train` keeps it constant. The value is 0 for a row without edited
        tokens.
        """
        score = self.detect(tokens)
        rest = score.masked_fill(self._strongest(score, example), 0.0)
        total, count = (torch.zeros(n_examples, dtype=score.dtype, device=score.device) for _ in range(2))
        return total.index_add(0, example, rest) / count.index_add(0, example, torch.ones_like(rest)).clamp(min=1)

    def affine(self) -> Affine:
        raise NotAffineError(
            "ReFT-r1 is not of the form A h + c: the change of a token depends on the strongest tokens of its example. "
            "It writes only along basis(); detect() returns the score of each token"
        )

    def basis(self) -> Float[Tensor, "k d_model"]:
        return self.direction().detach().double()

    def _strongest(self, score: Float[Tensor, " n"], example: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Whether a token is among the k largest scores of its example."""
        # Two stable sorts: examples one after another, and within each the largest score first.
        order = score.detach().argsort(descending=True, stable=True)
        order = order[example[order].argsort(stable=True)]
        # searchsorted warns about, and copies, what is not contiguous.
        grouped = example[order].contiguous()
        # Place within its example: own index minus that of the example's first token.
        place = torch.arange(len(order), device=score.device) - torch.searchsorted(grouped, grouped)
        chosen = torch.zeros_like(example, dtype=torch.bool)
        chosen[order] = place < self.k
        return chosen


def _mean(
    values: Float[Tensor, " n"], chosen: Bool[Tensor, " n"], example: Int[Tensor, " n"]
) -> Float[Tensor, " examples"]:
    """Returns the mean of each example's chosen values, per batch row; NaN for a row without any."""
    n_examples = int(example.max()) + 1 if len(example) else 0
    total = torch.zeros(n_examples, dtype=values.dtype, device=values.device)
    weight = chosen.to(values.dtype)
    return total.index_add(0, example, values * weight) / total.index_add(0, example, weight)
