"""Results on tasks: the evaluation of one model, and comparisons of several methods."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, final

import pandas as pd

from reftlens.files.folder import write_whole
from reftlens.files.reading import read_bytes, require_sealed
from reftlens.files.seal import seal_over
from reftlens.results.base import Result
from reftlens.results.search import shown

_MOST_BYTES = 2**30


@final
@dataclass(frozen=True, repr=False)
class Answered(Result):
    """One record of a task, with a model's output."""

    prompt: str
    output: str
    """The model's output, or the label it chose, as text."""
    prediction: str
    """The answer that the scorer extracted from the output; empty if it found none."""
    answer: str
    """The reference answer."""
    right: bool | None
    """Whether the record is correct; None for a metric without values for single records (a correlation)."""

    def headline(self) -> str:
        found = {True: "right", False: "wrong", None: "not judged by itself"}[self.right]
        return f"{found}: {self.prediction[:60]!r}, wanted {self.answer[:60]!r}; output {self.output[:60]!r}"

    def to_dataframe(self) -> pd.DataFrame:
        """Returns the result as one row."""
        return pd.DataFrame([asdict(self)])


@final
@dataclass(frozen=True, repr=False)
class Evaluation(Result):
    """One model, base or edited, on one task."""

    task: str
    metric: str
    """Such as "accuracy" (a part of 1) or "Matthews correlation"."""
    score: float
    rows: tuple[Answered, ...]
    """One for each record, in their order."""

    @property
    def n(self) -> int:
        """Records."""
        return len(self.rows)

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per record."""
        return pd.DataFrame([asdict(row) for row in self.rows], columns=[field.name for field in fields(Answered)])

    def save(self, file: str | Path) -> Path:
        """Writes JSON lines atomically: the task, metric and score first, then one line per record.

        Raises:
            OSError: If the file cannot be written.
        """
        place = Path(file)
        head = {"task": self.task, "metric": self.metric, "score": self.score, "n": self.n}
        lines = [json.dumps(line, ensure_ascii=False) for line in (head, *map(asdict, self.rows))]
        # After the lines are made: a value that is not JSON leaves nothing behind.
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, ("\n".join(lines) + "\n").encode())
        return place

    @classmethod
    def load(cls, file: str | Path) -> Evaluation:
        """Reads a file that `save` wrote.

        Raises:
            ValueError: If it is not a saved evaluation, or is damaged. The message names the line.
            OSError: If it cannot be opened.
        """
        place = Path(file)
        name, digests = seal_over(place) or (place.name, None)
        content = read_bytes(place, most=_MOST_BYTES)
        require_sealed(name, content, digests)
        try:
            # Not splitlines: an output may contain line separators that JSON does not escape.
            lines = content.decode("utf-8").removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text: {error}") from error
        head = _line(file, 1, lines[0], {"task", "metric", "score", "n"})
        if head["n"] != len(lines) - 1:
            raise ValueError(f"{file} is damaged: it should hold {head['n']} records, but holds {len(lines) - 1}")
        names = {field.name for field in fields(Answered)}
        rows = tuple(Answered(**_line(file, number, text, names)) for number, text in enumerate(lines[1:], start=2))
        return cls(task=head["task"], metric=head["metric"], score=head["score"], rows=rows)

    def headline(self) -> str:
        return f"{self.task}: {self.metric} {self.score:.4f} on {self.n:,} records"


def _line(file: str | Path, number: int, text: str, names: set[str]) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}, line {number}: not JSON ({error!s:.200})") from error
    if not isinstance(found, dict) or set(found) != names:
        raise ValueError(
            f"{file}, line {number}: not a line of a saved evaluation, which must have the keys {', '.join(sorted(names))}"
        )
    return found


@final
@dataclass(frozen=True)
class ComparedRun:
    """One method, trained once."""

    method: str
    seed: int
    score: float
    """On examples that were not trained on."""
    trained: int
    """Number of trained parameters, without a classifier's head."""
    head: int
    """Numbers of that head; 0 where there is none."""
    lr: float
    loss: float
    """Of the last step."""
    cpu_seconds: float
    """Of the process, all its threads together, for training alone; runs of the base that are held for it included."""
    memory: int | None
    """Bytes of tensors alive at once, at most, in a first step, beyond what was alive before it; None if not measured."""
    scale: float | None = None
    """Strength at which it was scored, 1 being as trained; None where methods were not scaled to one side effect."""
    kl: float | None = None
    """Mean KL(base, method) at this scale on prompts that should not change, in nats."""
    unscaled_kl: float | None = None
    """That KL of the method as trained."""


@final
@dataclass(frozen=True, repr=False)
class Comparison(Result):
    """A comparison of methods. Shared settings are stored once; others have one row per method."""

    metric: str
    n_train: int
    n_test: int
    steps: int
    """Of the optimiser, in every run."""
    batch_size: int
    base_parameters: int
    base_score: float | None
    """Score of the untrained base; None if scoring needs a trained head."""
    runs: tuple[ComparedRun, ...]
    trials: int = 0
    """Trials of the search for each method's settings; 0 if nothing was tuned."""
    tuned: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Method -> the settings that its search chose on validation examples."""
    budget: float | None = None
    """Nats of KL elsewhere to which each method was scaled; None if methods were scored as trained."""
    n_kept: int = 0
    """Prompts that this KL is a mean of."""

    @property
    def missed(self) -> tuple[str, ...]:
        """Methods with a run that is more than 5% off the budget, because even the largest scale stays below it."""
        if self.budget is None:
            return ()
        off = [run.method for run in self.runs if run.kl is None or not abs(run.kl / self.budget - 1) <= 0.05]
        return tuple(dict.fromkeys(off))

    def _by_method(self) -> dict[str, list[ComparedRun]]:
        names = dict.fromkeys(run.method for run in self.runs)
        return {name: [run for run in self.runs if run.method == name] for name in names}

    def runs_to_dataframe(self) -> pd.DataFrame:
        """Returns one row per run."""
        return pd.DataFrame([asdict(run) for run in self.runs])

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per method: means over seeds, and the least and greatest score."""
        lines = []
        for method, runs in self._by_method().items():
            scores = [run.score for run in runs]
            lines.append(
                {
                    "method": method,
                    "seeds": len(runs),
                    "score": _mean(scores),
                    "lowest": min(scores),
                    "highest": max(scores),
                    # Shapes do not depend on the seed: the first run stands for all.
                    "trained": runs[0].trained,
                    "percent": 100 * runs[0].trained / self.base_parameters,
                    "head": runs[0].head,
                    "lr": runs[0].lr,
                    **({"tuned": _as_text(self.tuned[method])} if method in self.tuned else {}),
                    **self._side_effect(runs),
                    "cpu_seconds": _mean([run.cpu_seconds for run in runs]),
                    "mib": None if runs[0].memory is None else runs[0].memory / 2**20,
                }
            )
        return pd.DataFrame(lines)

    def _side_effect(self, runs: Sequence[ComparedRun]) -> dict[str, float]:
        if self.budget is None:
            return {}
        return {
            name: _mean([value for run in runs if (value := getattr(run, name)) is not None])
            for name in ("scale", "kl", "unscaled_kl")
        }

    def to_markdown(self) -> str:
        """Returns the table in Markdown: the mean score, with the lowest and highest of the seeds in brackets."""
        scaled = () if self.budget is None else ("scale", "KL elsewhere")
        head = ("method", self.metric, "trained", "% of the base", "lr", "CPU s", "MiB", *scaled)
        base = ("base, untrained", f"{self.base_score or 0:.3f}", "0", "0", "", "", "", *("" for _ in scaled))
        rows = [] if self.base_score is None else [base]
        for line in self.to_dataframe().to_dict("records"):
            score = f"{line['score']:.3f} ({line['lowest']:.3f}-{line['highest']:.3f})"
            cost = (
                f"{line['lr']:g}",
                f"{line['cpu_seconds']:.1f}",
                "" if pd.isna(line["mib"]) else f"{line['mib']:.1f}",
            )
            missed = " (budget missed)" if line["method"] in self.missed else ""
            at = (f"{line['scale']:.3g}", f"{line['kl']:.3g}{missed}") if scaled else ()
            rows.append((line["method"], score, f"{line['trained']:,}", f"{line['percent']:.3g}", *cost, *at))
        return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows))

    def headline(self) -> str:
        means = {name: _mean([run.score for run in runs]) for name, runs in self._by_method().items()}
        scores = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
        tuned = f", each method tuned in {self.trials} trials" if self.trials else ""
        budget = f"{self.steps} steps of {self.batch_size} on {self.n_train}"
        missed = f" (missed by {', '.join(self.missed)})" if self.missed else ""
        equal = (
            "" if self.budget is None else f", each scaled to a KL of {self.budget:g} on {self.n_kept} others{missed}"
        )
        return f"{self.metric} on {self.n_test} examples, {budget}{tuned}{equal}: {scores}"


def _as_text(settings: Mapping[str, Any]) -> str:
    # The rate has a column of its own.
    return ", ".join(f"{name} {shown(value)}" for name, value in settings.items() if name != "lr")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
