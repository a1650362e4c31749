"""Counterfactual examples of a causal model: a base, a source, and the base's answer if a variable had the source's value.

    equality = CausalModel(
        inputs={name: "ABCDEF" for name in "abcd"},
        variables={"left": lambda a, b: a == b, "right": lambda c, d: c == d},
        answer=lambda left, right: " yes" if left == right else " no",
        prompt=lambda a, b, c, d: f"{a} {b} {c} {d} =",
    )
    pairs = counterfactuals(equality, "left", n=200, n_held_out=100)

A pair is informative about a variable only as far as other hypotheses predict another answer for
it. `separates` names those: another variable, "everything" (the whole source), or "nothing" (the
base is kept).
"""

from __future__ import annotations

import hashlib
import inspect
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, final

import pandas as pd

from reftlens.display import as_html
from reftlens.numbers import require_number, require_whole_number

Values = dict[str, Any]
"""Name of an input or a variable -> its value."""
_TRIES = 300
"""Draws for each pair that is wanted, before the model counts as unable to give it."""


class Counterfactual(NamedTuple):
    """One example. `objectives.Interchange` takes it as it is, and also tuples of its first fields."""

    base: str
    source: str
    label: str
    """The base's answer after the variable was set to its value in the source."""
    variable: str = "variable"
    """The variable that is swapped; several are joined by "+", as in "left+right"."""
    base_label: str = ""
    """The base's own answer; empty if unknown."""
    source_label: str = ""
    """The source's own answer; empty if unknown."""
    separates: tuple[str, ...] = ()
    """Other hypotheses that predict another answer than `label`: other variables, "everything" and "nothing"."""

    @property
    def changes(self) -> bool:
        """Whether the swap changes the base's answer."""
        return self.label != self.base_label


@final
@dataclass(frozen=True)
class CausalModel:
    """A causal model as functions of named values. The names of a function's parameters say what it depends on."""

    inputs: Mapping[str, Sequence[Any]]
    """Name of an input -> the values it may have."""
    variables: Mapping[str, Callable[..., Any]]
    """Name of a variable -> its value from inputs and from variables before it."""
    answer: Callable[..., str]
    """The answer, with its leading space, from inputs and variables."""
    prompt: Callable[..., str]
    """The prompt, from inputs."""

    def __post_init__(self) -> None:
        known = set(self.inputs)
        if not known or not all(len(values) for values in self.inputs.values()):
            raise ValueError("a causal model needs inputs, each with at least one value")
        for name, equation in [*self.variables.items(), ("answer", self.answer)]:
            if name in known or not name.isidentifier():
                raise ValueError(f"a variable needs a name of its own that is an identifier, got {name!r}")
            missing = [parameter for parameter in _parameters(equation) if parameter not in known]
            if missing:
                raise ValueError(
                    f"{name} depends on {', '.join(missing)}, but only these come before it: {', '.join(sorted(known))}"
                )
            known.add(name)

    def run(self, inputs: Mapping[str, Any], do: Mapping[str, Any] | None = None) -> Values:
        """Computes all variables and the answer.

        Args:
            inputs: the value of each input.
            do: variables that are set to a value instead of computed.

        Returns:
            The values of inputs and variables, and "answer".
        """
        values: Values = dict(inputs)
        for name, equation in [*self.variables.items(), ("answer", self.answer)]:
            values[name] = do[name] if do and name in do else _called(equation, values)
        return values

    def interchange(self, base: Mapping[str, Any], source: Mapping[str, Any], variables: Sequence[str]) -> str:
        """Returns the base's answer after these variables (or inputs) were set to their values in the source.

        Args:
            base: the inputs of the base.
            source: the inputs of the source.
            variables: names.
        """
        values = self.run(source)
        return self._set(base, {name: values[name] for name in variables})

    def _set(self, base: Mapping[str, Any], do: Mapping[str, Any]) -> str:
        """Returns the answer after inputs and variables were set."""
        inputs = {name: do.get(name, value) for name, value in base.items()}
        return str(self.run(inputs, do)["answer"])

    def text(self, inputs: Mapping[str, Any]) -> str:
        """Returns the prompt of these inputs.

        Args:
            inputs: the value of each input.
        """
        return str(_called(self.prompt, inputs))


@final
@dataclass(frozen=True)
class Counterfactuals:
    """Examples to train on and held-out ones. No prompt is in both, neither as a base nor as a source."""

    train: tuple[Counterfactual, ...]
    held_out: tuple[Counterfactual, ...]

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per example."""
        parts = {"train": self.train, "held out": self.held_out}
        rows = [{"split": name, **pair._asdict()} for name, pairs in parts.items() for pair in pairs]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        labels = Counter(pair.label for pair in (*self.train, *self.held_out))
        return f"Counterfactuals({len(self.train)} to train on, {len(self.held_out)} held out; labels {dict(labels)})"

    def _repr_html_(self) -> str:
        return as_html(repr(self), self.to_dataframe)


def counterfactuals(
    model: CausalModel,
    variables: str | Sequence[str],
    *,
    n: int,
    n_held_out: int,
    share_held_out: float = 0.5,
    by_value: Mapping[str, Collection[Any]] | None = None,
    where: Callable[[Counterfactual], bool] | None = None,
    seed: int = 0,
) -> Counterfactuals:
    """Draws balanced examples of a causal model, in two splits that share no prompt.

    For each variable, every answer that occurs is the label equally often, and half of the examples
    of each answer change the base's answer, as far as the model allows. So neither the base's
    answer nor a constant predicts the label.

    Args:
        model: the causal model.
        variables: one or several, such as "left" or ["left", "right"]; "left+right" swaps both
            together.
        n: examples to train on, divided evenly among the variables.
        n_held_out: held-out examples.
        share_held_out: share of all prompts that are reserved for held-out examples.
        by_value: input -> values that only held-out prompts have; the prompts to train on have none
            of them. Then a subspace that stores the training values one by one fails on held-out
            examples.
        where: keeps only some of the examples, such as `lambda pair: "everything" in
            pair.separates`.
        seed: seed of the splits and draws.

    Raises:
        ValueError: If a variable or value is unknown, or the model does not give enough different
            examples.
    """
    names = (variables,) if isinstance(variables, str) else tuple(variables)
    _check(model, names, by_value or {})
    require_whole_number("n", n, least=1)
    require_whole_number("n_held_out", n_held_out, least=1)
    require_number("share_held_out", share_held_out, above=0)
    draw = _Draw(model, names, share_held_out, by_value or {}, where, seed)
    return Counterfactuals(draw.split(n, held_out=False), draw.split(n_held_out, held_out=True))


class _Draw:
    """Draws examples of one causal model."""

    def __init__(
        self,
        model: CausalModel,
        names: Sequence[str],
        share: float,
        by_value: Mapping[str, Collection[Any]],
        where: Callable[[Counterfactual], bool] | None,
        seed: int,
    ) -> None:
        self.model, self.names, self.share, self.by_value, self.where = model, names, share, by_value, where
        self.seed, self.random = seed, random.Random(seed)

    def split(self, n: int, *, held_out: bool) -> tuple[Counterfactual, ...]:
        counts = [n // len(self.names) + (place < n % len(self.names)) for place in range(len(self.names))]
        found = [
            pair
            for name, count in zip(self.names, counts, strict=True)
            for pair in self._balanced(name, count, held_out=held_out)
        ]
        self.random.shuffle(found)
        return tuple(found)

    def _balanced(self, name: str, n: int, *, held_out: bool) -> list[Counterfactual]:
        """Draws pairs until every kind (label, whether the answer changes) has its share.

        Kinds that do not occur among many draws leave their share to the others.
        """
        pools: dict[tuple[str, bool], dict[tuple[str, str], Counterfactual]] = {}
        for tried in range(1, _TRIES * n + 1):
            pair = self._pair(name, held_out=held_out)
            if pair is not None and (self.where is None or self.where(pair)):
                pools.setdefault((pair.label, pair.changes), {}).setdefault((pair.base, pair.source), pair)
            # Rare kinds need time to show up, so the pools are looked at only now and then.
            if tried >= 8 * n and tried % (4 * n) == 0 and pools:
                # Sorted, because the order of the draws would decide which kinds get the remainder.
                wanted = _even(n, sorted(pools))
                if all(len(pools[kind]) >= count for kind, count in wanted.items()):
                    return [pair for kind, count in wanted.items() for pair in list(pools[kind].values())[:count]]
        sizes = {f"{label!r}{', changed' if changed else ''}": len(pool) for (label, changed), pool in pools.items()}
        raise ValueError(
            f"the causal model gives too few different {'held-out ' * held_out}examples of {name!r} for {n}: found {sizes}. Ask "
            "for fewer, give the inputs more values, or change by_value, share_held_out or where"
        )

    def _pair(self, name: str, *, held_out: bool) -> Counterfactual | None:
        base, source = self._inputs(held_out=held_out), self._inputs(held_out=held_out)
        # A prompt that is its own source agrees with every hypothesis.
        if base is None or source is None or base == source:
            return None
        model, chosen = self.model, name.split("+")
        values = model.run(source)
        own, theirs = str(model.run(base)["answer"]), str(values["answer"])
        label = model._set(base, {one: values[one] for one in chosen})
        others = {other: model._set(base, {other: values[other]}) for other in model.variables if other not in chosen}
        others |= {"everything": theirs, "nothing": own}
        separates = tuple(other for other, answer in others.items() if answer != label)
        return Counterfactual(model.text(base), model.text(source), label, name, own, theirs, separates)

    def _inputs(self, *, held_out: bool) -> Values | None:
        """Draws the inputs of a prompt of this split; None if they belong to the other."""
        inputs = {}
        for name, values in self.model.inputs.items():
            kept = self.by_value.get(name)
            # These values alone divide the splits, so no prompt can be in both.
            allowed = values if kept is None else [value for value in values if (value in kept) == held_out]
            inputs[name] = self.random.choice(allowed)
        if self.by_value:
            return inputs
        # The split depends on the text alone, so equal prompts always come into the same one.
        reserved = _fraction(f"{self.seed}:{self.model.text(inputs)}") < self.share
        return inputs if reserved == held_out else None


def as_counterfactuals(given: Sequence[Any], name: str = "examples") -> list[Counterfactual]:
    """Reads examples, which may be tuples of the first fields.

    Args:
        given: `Counterfactual`s, or tuples.
        name: of the argument, for errors.

    Raises:
        ValueError: If there are none, or one has too few or too many fields.
    """
    if not len(given):
        raise ValueError(f"{name} must have at least one pair, got none")
    most = len(Counterfactual._fields)
    for row, one in enumerate(given):
        if not isinstance(one, tuple | list) or not 3 <= len(one) <= most:
            raise ValueError(
                f"{name} {row} must be a Counterfactual or a tuple (base, source, label, ...), got {one!r}"
            )
    return [Counterfactual(*one) for one in given]


def arbitrary_labels(examples: Sequence[Counterfactual | tuple[str, ...]], *, seed: int = 0) -> list[Counterfactual]:
    """Gives each example a random one of the labels that occur, the control of an alignment: there is nothing to learn.

    A label depends on the prompts and the seed alone. So two lists get independent labels, and each
    list the same ones again.

    Args:
        examples: from `counterfactuals`, or tuples of its fields.
        seed: of the labels.
    """
    pairs = as_counterfactuals(examples)
    labels = sorted({pair.label for pair in pairs})
    keys = [f"{seed}:{pair.base}:{pair.source}:{pair.variable}" for pair in pairs]
    return [
        pair._replace(label=labels[int(len(labels) * _fraction(key))]) for pair, key in zip(pairs, keys, strict=True)
    ]


def _even(n: int, kinds: Sequence[tuple[str, bool]]) -> dict[tuple[str, bool], int]:
    """Divides n evenly among labels, and each label's share among its kinds."""
    labels = sorted({label for label, _ in kinds})
    shares: dict[tuple[str, bool], int] = {}
    for place, label in enumerate(labels):
        own = [kind for kind in kinds if kind[0] == label]
        share = n // len(labels) + (place < n % len(labels))
        shares |= {kind: share // len(own) + (rank < share % len(own)) for rank, kind in enumerate(own)}
    return shares


def _check(model: CausalModel, names: Sequence[str], by_value: Mapping[str, Collection[Any]]) -> None:
    known = [*model.inputs, *model.variables]
    for name in "+".join(names).split("+"):
        if name not in known:
            raise ValueError(f"Unknown variable {name!r}. Choose from: {', '.join(known)}")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"variables must name at least one variable, each once, got {names}")
    for name, kept in by_value.items():
        values = list(model.inputs.get(name, ()))
        inside = [value for value in values if value in kept]
        if not inside or len(inside) == len(values):
            raise ValueError(
                f"by_value must name inputs, each with some of its values but not all of them: {name!r} has {values}, got {kept}"
            )


def _called(function: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    return function(**{name: values[name] for name in _parameters(function)})


# Each of thousands of draws asks for the parameters of every equation.
@lru_cache(maxsize=1024)
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _fraction(text: str) -> float:
    """Returns a number in [0, 1) that depends on the text alone and is the same in every process."""
    # 48 bits fit into a float exactly; 64 could round up to 1.
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big") / 2**48
