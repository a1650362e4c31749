"""Distributed interchange: replaces the part of an activation inside a subspace by that of another run of the model.

The other interventions derive from it (Geiger et al. 2023, arXiv:2303.02536): LoReFT is interchange
with a learned source, Rs = Wh + b, and DAS learns R on pairs of inputs (`objectives.Interchange`).
Success alone is not evidence: R can be fitted to arbitrary labels, and on random models.
`analysis.align` trains with these controls.

All classes here are h + W^T G (f(s) - f(h)): f reads k features, the gates G in [0, 1] say which of
them are swapped, and W writes them back. They differ in what is learned:

- `Interchange`: f(h) = Rh with a learned R; every gate is 1.
- `SplitInterchange`: the same with the rows of R divided among variables; the gates of a token's
  variables are 1.
- `BoundlessInterchange`: the same, and a learned boundary says how many of a variable's rows are
  swapped.
- `MaskedInterchange`: f is given (principal components, neurons, dictionary features); one gate per
  feature is learned.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reftlens.interventions.base import Affine, Intervention, NotAffineError, promote
from reftlens.interventions.orthonormal import Orthonormal, require_orthonormal

Source = Tensor | Callable[[Tensor], Tensor]
"""Source activations `[d_model]` (one for all) or `[n, d_model]` (one per edited token), or a function that returns them."""


class SourceIntervention(Intervention):
    """Base class of interchanges. The source belongs to a batch, not to the edit: `take` sets it, and it is not saved."""

    parts: Mapping[str, int] = {}
    """Most dimensions of each named variable; empty if the intervention has one variable without a name."""

    def __init__(self, d_model: int, rank: int) -> None:
        super().__init__(d_model, rank)
        # A tuple keeps a source that is itself a module out of the edit's parameters.
        self._source: tuple[Source, ...] = ()
        self._chosen: tuple[str, ...] | None = None

    @property
    def source(self) -> Source | None:
        """The source of s; None until `take` sets it."""
        return self._source[0] if self._source else None

    def take(self, source: Source | None, variables: Sequence[str] | None = None) -> None:
        """Sets the source of s for the following runs. None removes it.

        Args:
            source: a tensor `[d_model]`; a tensor `[n, d_model]`, one row per edited token, in the
                order of batch rows and positions (`cache[hook_name][mask]`); or a function from the
                edited tokens to such a tensor.
            variables: for each edited token, the variables that are swapped there, joined by "+" as
                in "left+right". By default all of them.

        Raises:
            ValueError: If a variable has no part in this intervention.
        """
        names = {name for chosen in variables or () for name in chosen.split("+")}
        unknown = sorted(names - set(self.parts))
        if self.parts and unknown:
            raise ValueError(f"Unknown variable {', '.join(map(repr, unknown))}. Choose from: {', '.join(self.parts)}")
        self._source = () if source is None else (source,)
        self._chosen = None if variables is None or not self.parts else tuple(variables)

    @abstractmethod
    def gates(self) -> Float[Tensor, " rank"]:
        """Returns the gate of each row or feature: 1 if it is swapped, 0 if it stays."""

    @abstractmethod
    def factors(self) -> tuple[Float[Tensor, "rank d_model"], Float[Tensor, "rank d_model"]]:
        """Returns the rows that are written, and those that read."""

    def widths(self) -> dict[str, int]:
        """Returns how many rows or features of each variable are swapped. One variable without a name is called "variable"."""
        # A gate above 1/2 becomes 1 when the temperature falls to 0.
        swapped = (self.gates() > 0.5).tolist()
        if not self.parts:
            return {"variable": sum(swapped)}
        return {name: sum(swapped[rows]) for name, rows in self._rows().items()}

    def subspace(self, variable: str | None = None) -> Float[Tensor, "k d_model"]:
        """Returns the written rows that are swapped, in float64.

        Args:
            variable: only those of this variable.

        Raises:
            ValueError: If there is no such variable.
        """
        keep = self.gates().detach() > 0.5
        if variable is not None:
            if variable not in self.parts:
                raise ValueError(f"Unknown variable {variable!r}. Choose from: {', '.join(self.parts) or 'none'}")
            inside = torch.zeros_like(keep)
            inside[self._rows()[variable]] = True
            keep = keep & inside
        return self.factors()[0].detach().double()[keep]

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        write, read = self.factors()
        h = promote(resid, write)
        gap = self._gap(self._values(resid).to(h), h, read.to(h))
        gates = self.gates().to(h) * self._membership(resid).to(h)
        return (gap * gates @ write.to(h)).to(resid.dtype)

    def affine(self) -> Affine:
        source = self.source
        if not isinstance(source, Tensor) or source.ndim != 1 or self._chosen is not None:
            raise NotAffineError(
                f"this {type(self).__name__} is not of the form A h + c, because its source differs between tokens, or "
                "its variables do. Set one source activation [d_model] for all tokens, or use basis() and the changes themselves"
            )
        write, read = self.factors()
        gates = self.gates()
        # Only orthonormal rows erase: their coordinates of h are removed before the source's are
        # written.
        erase = gates.sqrt()[:, None] * read if write is read else None
        constant = (gates * (read @ source.to(read))) @ write
        return Affine(write=write, read=-gates[:, None] * read, constant=constant, erase=erase)

    def basis(self) -> Float[Tensor, "k d_model"]:
        # The rows are orthonormal. `MaskedInterchange`, whose rows need not be, overrides this.
        return self.factors()[0].detach().double()[self.gates().detach() > 0]

    def _gap(self, s: Tensor, h: Tensor, read: Tensor) -> Tensor:
        """Returns f(s) - f(h). A linear f reads the difference, which loses less to rounding."""
        return (s - h) @ read.T

    def _rows(self) -> dict[str, slice]:
        """Returns the rows of each variable."""
        ends = torch.tensor([0, *self.parts.values()]).cumsum(0).tolist()
        return {name: slice(start, end) for name, start, end in zip(self.parts, ends, ends[1:], strict=False)}

    def _membership(self, resid: Tensor) -> Tensor:
        """Returns 1 where a row belongs to a variable that is swapped at this token, `[n, rank]`; ones without a choice."""
        if self._chosen is None:
            return torch.ones(self.rank, device=resid.device)
        if resid.shape[:-1] != (len(self._chosen),):
            raise ValueError(
                f"take() got variables for {len(self._chosen)} edited tokens, but {list(resid.shape[:-1])} are edited"
            )
        rows = self._rows()
        inside = torch.zeros(len(self._chosen), self.rank)
        for token, chosen in enumerate(self._chosen):
            for name in chosen.split("+"):
                inside[token, rows[name]] = 1
        return inside.to(resid.device)

    def _values(self, resid: Tensor) -> Tensor:
        source = self.source
        if source is None:
            raise ValueError(
                f"this {type(self).__name__} has no source activations: call edit.take(source) before the run"
            )
        values = source if isinstance(source, Tensor) else source(resid)
        if values.shape not in (resid.shape, resid.shape[-1:]):
            raise ValueError(
                f"the source of an {type(self).__name__} must be [{self.d_model}] or {list(resid.shape)}, one activation for each "
                f"edited token, got {list(values.shape)}"
            )
        return values


class _Rotated(SourceIntervention):
    """Interchanges in the coordinates R h, where R is learned and has orthonormal rows."""

    def __init__(self, d_model: int, rank: int) -> None:
        super().__init__(d_model, rank)
        self.rotation = Orthonormal(rank, d_model)

    @property
    def R(self) -> Float[Tensor, "rank d_model"]:
        """The subspace, with orthonormal rows."""
        return self.rotation()

    def gates(self) -> Float[Tensor, " rank"]:
        return torch.ones(self.rank, device=self.rotation.weight.device, dtype=self.rotation.weight.dtype)

    def factors(self) -> tuple[Float[Tensor, "rank d_model"], Float[Tensor, "rank d_model"]]:
        R = self.R
        return R, R


@final
class Interchange(_Rotated):
    """Interchange: h + R^T(Rs - Rh), where R has orthonormal rows and s is the activation of the source run.

    (Geiger et al. 2023, arXiv:2303.02536; eq. 1 of Wu et al. 2024, arXiv:2404.03592.) The source
    belongs to a batch, not to the edit: set it with `edit.take(...)` before a run. It is not saved.
    """

    kind = "interchange"

    @classmethod
    def along(cls, basis: Float[Tensor, "rank d_model"]) -> Interchange:
        """Creates an interchange in a given subspace, such as `analysis.directions(operator, 2)`.

        Args:
            basis: orthonormal rows.

        Raises:
            ValueError: If the rows are not orthonormal.
        """
        edit = cls(basis.shape[1], basis.shape[0]).to(basis.device)
        edit.rotation.start_at(basis)
        return edit


class _InParts(_Rotated):
    """Interchanges whose rows are divided among named variables. One R holds all rows, so the parts are orthogonal."""

    arguments: ClassVar[tuple[str, ...]] = ("d_model", "parts")

    def __init__(self, d_model: int, parts: dict[str, int]) -> None:
        """Args: d_model: width of the activation. parts: the most dimensions of each variable, by its name.

        Raises:
            ValueError: If there are no parts, one has no dimension, a name is not an identifier, or
                together they exceed the width.
        """
        if not parts:
            raise ValueError(f"{type(self).__name__} needs at least one part, such as {{'left': 2}}, got none")
        for name, rank in parts.items():
            if rank < 1:
                raise ValueError(f"the rank of each part must be at least 1, got {rank} for {name!r}")
            if not name.isidentifier():
                raise ValueError(f"the name of a part must be a Python identifier, such as 'left', got {name!r}")
        super().__init__(d_model, sum(parts.values()))
        self.parts = dict(parts)


@final
class SplitInterchange(_InParts):
    """Interchange in parts: h + sum over a token's variables v of R_v^T(R_v s - R_v h), all rows jointly orthonormal.

    Several variables are aligned at once, each in its own part of the space (Geiger et al. 2023,
    arXiv:2303.02536). `take(source, variables)` says which of them are swapped at each token; by
    default all of them.
    """

    kind = "split-interchange"


class _Annealed(SourceIntervention):
    """Interchanges with learned gates: sigmoid(x / T) while they are trained, and x > 0 afterwards, when T is 0."""

    hottest: ClassVar[float]
    coldest: ClassVar[float]
    temperature: Tensor

    @abstractmethod
    def preferences(self) -> Float[Tensor, " rank"]:
        """Returns x, which is positive where a row is swapped."""

    def gates(self) -> Float[Tensor, " rank"]:
        x = self.preferences()
        # A hard gate has no gradient, so a trained edit is not trained on without a new
        # temperature.
        return (x > 0).to(x) if float(self.temperature) == 0 else torch.sigmoid(x / self.temperature)

    def anneal(self, progress: float) -> None:
        cooled = self.hottest * (self.coldest / self.hottest) ** progress
        self.temperature.fill_(0.0 if progress >= 1 else cooled)

    def l1(self, tokens: Tensor, example: Tensor, n_examples: int) -> Float[Tensor, " n_examples"]:
        """The share of the rows that are swapped, the same for each example. Without it nothing keeps the subspace small."""
        return self.gates().mean().expand(n_examples)


@final
class BoundlessInterchange(_InParts, _Annealed):
    """Boundless: h + R^T G(Rs - Rh), where row j of a variable has the gate sigmoid((b k - j - 1/2) / T).

    k is the variable's number of rows and b its learned boundary, so about b k rows are swapped. T
    falls from 2 to 0.05 rows during training; afterwards row j is swapped if j + 1/2 < b k (Wu et
    al. 2023, arXiv:2305.08809, section 3, with the first boundary at 0). `TrainConfig.l1` weights
    the share of swapped rows, which the paper also penalises.
    """

    kind = "boundless-interchange"
    hottest, coldest = 2.0, 0.05

    def __init__(self, d_model: int, parts: dict[str, int]) -> None:
        super().__init__(d_model, parts)
        self.boundary = nn.Parameter(torch.full((len(parts),), 0.5))
        self.register_buffer("temperature", torch.tensor(self.hottest))

    def preferences(self) -> Float[Tensor, " rank"]:
        b = self.boundary
        found = [
            b[place] * rank - torch.arange(rank, device=b.device) - 0.5
            for place, rank in enumerate(self.parts.values())
        ]
        return torch.cat(found)

    def gates(self) -> Float[Tensor, " rank"]:
        # Of the two bases, `_Rotated` comes first and would swap every row.
        return _Annealed.gates(self)


@final
class MaskedInterchange(_Annealed):
    """A mask over features: h + W^T G(f(s) - f(h)), f(h) = E h + c (or its positive part), with a learned gate per feature.

    E, c and W are given and stay as they are; the gate of feature j is sigmoid(m_j / T). `over`
    makes one over orthonormal rows such as principal components, `over_dictionary` one over the
    features of a dictionary. A new one is over the first `rank` coordinates, which are neurons
    where the activation has them. T falls from 1 to 0.01 during training, and afterwards the
    features with m_j > 0 are swapped. `TrainConfig.l1` weights the share of swapped features.
    (Differential binary masking: Csordas et al. 2021, arXiv:2010.02066; compared with DAS in MIB,
    arXiv:2504.13151.)
    """

    kind = "masked-interchange"
    arguments = ("d_model", "rank", "relu")
    hottest, coldest = 1.0, 0.01
    read: Tensor
    write: Tensor
    bias: Tensor

    def __init__(self, d_model: int, rank: int, relu: bool = False) -> None:
        """Args: d_model: width of the activation. rank: number of features. relu: whether features below 0 count as 0."""
        super().__init__(d_model, rank)
        self.relu = relu
        self.mask = nn.Parameter(torch.zeros(rank))
        self.register_buffer("read", torch.eye(rank, d_model))
        self.register_buffer("write", torch.eye(rank, d_model))
        self.register_buffer("bias", torch.zeros(rank))
        self.register_buffer("temperature", torch.tensor(self.hottest))

    @classmethod
    def over(cls, basis: Float[Tensor, "rank d_model"]) -> MaskedInterchange:
        """Creates a mask over rows that both read and write, such as principal components.

        Args:
            basis: orthonormal rows.

        Raises:
            ValueError: If the rows are not orthonormal.
        """
        require_orthonormal(basis)
        return cls.over_dictionary(basis, basis)

    @classmethod
    def over_dictionary(
        cls,
        read: Float[Tensor, "rank d_model"],
        write: Float[Tensor, "rank d_model"],
        bias: Float[Tensor, " rank"] | None = None,
        *,
        relu: bool = False,
    ) -> MaskedInterchange:
        """Creates a mask over a dictionary's features. What the dictionary does not reconstruct stays the base's.

        Args:
            read: the encoder's rows.
            write: the decoder's rows.
            bias: the encoder's bias, with the decoder's bias already folded in; 0 by default.
            relu: whether features below 0 count as 0.
        """
        edit = cls(read.shape[1], read.shape[0], relu).to(read.device)
        with torch.no_grad():
            edit.read.copy_(read)
            edit.write.copy_(write)
            if bias is not None:
                edit.bias.copy_(bias)
        return edit

    def untrained(self) -> MaskedInterchange:
        # Features are given, not learned: a new start has the same ones and only new gates.
        return type(self).over_dictionary(self.read, self.write, self.bias, relu=self.relu)

    def preferences(self) -> Float[Tensor, " rank"]:
        return self.mask

    def factors(self) -> tuple[Float[Tensor, "rank d_model"], Float[Tensor, "rank d_model"]]:
        return self.write, self.read

    def _gap(self, s: Tensor, h: Tensor, read: Tensor) -> Tensor:
        if not self.relu:
            return super()._gap(s, h, read)
        return (s @ read.T + self.bias.to(h)).relu() - (h @ read.T + self.bias.to(h)).relu()

    def affine(self) -> Affine:
        if self.relu:
            raise NotAffineError(
                "this MaskedInterchange reads positive parts of features, so it is not of the form A h + c"
            )
        return super().affine()

    def basis(self) -> Float[Tensor, "k d_model"]:
        rows = self.write.detach().double()[self.gates().detach() > 0]
        if not len(rows):
            return rows
        _, spectrum, vectors = torch.linalg.svd(rows, full_matrices=False)
        return vectors[spectrum > 1e-6 * spectrum[0]]
