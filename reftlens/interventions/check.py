"""Tests an intervention class before training: that its change agrees with its affine form and its
span, and that it can be trained and saved.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from reftlens.interventions.agreement import require_agreement
from reftlens.interventions.base import Intervention

_WIDTH, _RANK, _TOKENS = 16, 3, 6


def check_intervention(
    kind: type,
    *,
    settings: Mapping[str, object] | None = None,
    prepare: Callable[[Intervention], object] | None = None,
) -> tuple[str, ...]:
    """Tests everything that training, analyses and saving require of an intervention class.

    Args:
        kind: the class, for example your own.
        settings: arguments of its constructor. By default `d_model=16` and `rank=3` if it takes
            these, and its own defaults for the others.
        prepare: called with each instance before use, if the class needs more than its constructor
            (such as the source of an `Interchange`).

    Returns:
        The properties that hold, one line each.

    Raises:
        ValueError: If any property does not hold. The message lists all that fail.
    """
    held: list[str] = []
    failed: list[str] = []
    trial = _Trial(kind, settings, prepare)
    for name, check in trial.checks().items():
        try:
            check()
        except Exception as error:  # A user's class may raise anything, and one message should list all of its faults.
            failed.append(f"- {name}: {type(error).__name__}: {error}")
            if name in _NEEDED:
                break
        else:
            held.append(name)
    if failed:
        raise ValueError(f"{getattr(kind, '__name__', kind)} cannot be used as an intervention:\n" + "\n".join(failed))
    return tuple(held)


def require_kind(kind: Any) -> None:
    """Refuses a class that a saved edit could not name, or that is not a complete intervention class.

    Args:
        kind: the class.

    Raises:
        TypeError: If it is not an intervention class.
        ValueError: If its `kind` is missing or belongs to another class, or a method is missing.
    """
    if not (isinstance(kind, type) and issubclass(kind, Intervention)):
        raise TypeError(f"the class must be a subclass of rl.Intervention, got {kind!r}")
    name = getattr(kind, "kind", None)
    if not isinstance(name, str) or not name.replace("-", "_").isidentifier():
        raise ValueError(
            f"{kind.__name__}.kind must be a short name such as 'my-edit', which saved edits refer to, got {name!r}"
        )
    taken = [other for other in _subclasses(Intervention) if getattr(other, "kind", None) == name]
    # A user's own class may exist twice, because a notebook cell was run again.
    if any(other is not kind and other.__module__.startswith("reftlens.") for other in taken):
        raise ValueError(
            f"kind = {name!r} already belongs to {taken[0].__name__}: choose another kind for {kind.__name__}"
        )
    missing = sorted(getattr(kind, "__abstractmethods__", ()))
    if missing:
        raise ValueError(f"{kind.__name__} must implement {', '.join(missing)}")
    if kind.forward is not Intervention.forward:
        raise ValueError(
            f"{kind.__name__} must implement delta and must not override forward, because analyses use delta"
        )


_NEEDED = ("it subclasses Intervention and has its own kind", "its settings are plain JSON and recreate it")
"""The other checks require these."""


class _Trial:
    """One class under test: untrained, and after a few training steps, when all of its parameters differ from zero."""

    def __init__(
        self,
        kind: type,
        settings: Mapping[str, object] | None,
        prepare: Callable[[Intervention], object] | None,
    ) -> None:
        self.kind: Any = kind
        self.prepare = prepare
        self.wanted = settings

    def checks(self) -> dict[str, Callable[[], None]]:
        return {
            _NEEDED[0]: self.identity,
            _NEEDED[1]: self.settings,
            "delta returns the shape and dtype of the activation and does not modify it": self.shapes,
            "each token is edited independently, unless delta_of is implemented": self.tokenwise,
            "all parameters and the activation get gradients": self.gradients,
            "affine and basis agree with delta": self.agreement,
            "it can be created on the meta device and loaded afterwards": self.meta,
        }

    def identity(self) -> None:
        require_kind(self.kind)

    def settings(self) -> None:
        wanted = self._settings()
        edit = self.kind(**wanted)
        said = edit.settings()
        try:
            again = json.loads(json.dumps(said, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"settings() must be plain JSON values, got {said!r:.200}: {error}") from error
        if again != said or list(again) != list(self.kind.arguments):
            raise ValueError(f"settings() must survive JSON and have the keys {self.kind.arguments}, got {said!r:.200}")
        other = self.kind(**again)
        shapes = [{name: value.shape for name, value in one.state_dict().items()} for one in (edit, other)]
        if other.settings() != said or shapes[0] != shapes[1]:
            raise ValueError("an edit made from settings() must have the same settings and shapes, but differs")

    def shapes(self) -> None:
        edit = self._made()
        for shape in ((_TOKENS, edit.d_model), (2, _TOKENS, edit.d_model)):
            for dtype in (torch.float32, torch.bfloat16):
                h = self._tokens(edit, shape).to(dtype)
                before = h.clone()
                change = edit.delta(h)
                if change.shape != h.shape or change.dtype != dtype:
                    raise ValueError(
                        f"delta must return the shape and dtype of its input, {list(shape)} in {dtype}, got "
                        f"{list(change.shape)} in {change.dtype}"
                    )
                if not torch.equal(h, before):
                    raise ValueError("delta must not write into the activation: return the change")
                if not bool(change.isfinite().all()):
                    raise ValueError("delta returns NaN or infinite values")

    def tokenwise(self) -> None:
        edit = self._trained()
        h = self._tokens(edit, (_TOKENS, edit.d_model))
        example = torch.arange(_TOKENS) // 2
        with torch.no_grad():
            together = edit.delta_of(h, example)
            alone = torch.cat(
                # Alone, every example is row 0 of its batch.
                [edit.delta_of(h[example == row], example[example == row] * 0) for row in range(_TOKENS // 2)]
            )
            rows = h.view(_TOKENS // 2, 2, edit.d_model)
            by_delta = edit.delta(rows).reshape_as(h)
        for other, what in (
            (alone, "the change of an example depends on the other examples in the batch"),
            (by_delta, "delta_of and delta disagree"),
        ):
            if not torch.allclose(together, other, rtol=1e-4, atol=1e-5):
                raise ValueError(f"{what} (by up to {float((together - other).abs().max()):.3g}): implement delta_of")

    def gradients(self) -> None:
        edit = self._made()
        h = self._tokens(edit, (_TOKENS, edit.d_model)).requires_grad_()
        # Random weights, because the gradient of a plain sum may vanish by symmetry.
        weights = torch.randn(h.shape, generator=torch.Generator().manual_seed(2))
        (edit(h) * weights).sum().backward()
        without = [
            name for name, parameter in edit.named_parameters() if parameter.requires_grad and parameter.grad is None
        ]
        if without or h.grad is None:
            raise ValueError(f"{', '.join(without) or 'the activation'} gets no gradient: a part of delta is detached")

    def agreement(self) -> None:
        for edit in (self._made(), self._trained()):
            h = self._tokens(edit, (_TOKENS, edit.d_model))
            require_agreement(edit, h)

    def meta(self) -> None:
        edit = self._trained()
        with torch.device("meta"):
            loaded = self.kind(**self._settings())
        # assign, because a meta tensor has no memory to copy into.
        loaded.load_state_dict({name: value.clone() for name, value in edit.state_dict().items()}, assign=True)
        if self.prepare is not None:
            self.prepare(loaded)
        h = self._tokens(edit, (_TOKENS, edit.d_model))
        with torch.no_grad():
            if not torch.allclose(loaded.delta(h), edit.delta(h), rtol=1e-5, atol=1e-6):
                raise ValueError(
                    "after loading its own state, the edit makes a different change: store all numbers in parameters or buffers"
                )

    def _settings(self) -> dict[str, object]:
        if self.wanted is not None:
            return dict(self.wanted)
        known: dict[str, object] = {"d_model": _WIDTH, "rank": _RANK}
        parameters = inspect.signature(self.kind).parameters
        unknown = [
            name
            for name in self.kind.arguments
            if name not in known and (name not in parameters or parameters[name].default is inspect.Parameter.empty)
        ]
        if unknown:
            raise ValueError(f"pass settings={{...}} with a value for {', '.join(unknown)}")
        return {name: known[name] for name in self.kind.arguments if name in known}

    def _made(self) -> Intervention:
        with _seeded():
            edit = self.kind(**self._settings())
        if self.prepare is not None:
            self.prepare(edit)
        return edit

    def _trained(self) -> Intervention:
        """Trains a few steps towards random activations, since many edits change nothing at initialisation."""
        edit = self._made()
        parameters = [parameter for parameter in edit.parameters() if parameter.requires_grad]
        if not parameters:
            return edit
        h = self._tokens(edit, (2, _TOKENS, edit.d_model))
        goal = torch.randn(h.shape, generator=torch.Generator().manual_seed(1))
        optimiser = torch.optim.Adam(parameters, lr=0.1)
        for _ in range(5):
            optimiser.zero_grad()
            loss = (edit(h) - goal).square().sum()
            if not loss.requires_grad:
                break
            loss.backward()
            optimiser.step()
        return edit

    def _tokens(self, edit: Intervention, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@contextmanager
def _seeded() -> Iterator[None]:
    # The CPU's generator only: by default torch would save that of every GPU too.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _subclasses(kind: Any) -> Iterator[Any]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
