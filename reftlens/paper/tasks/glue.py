"""GLUE: eight classification or regression tasks on a sentence or a pair (Wang et al. 2018, arXiv:1804.07461).

As in Wu et al. 2024 (section 4.4), a head reads an encoder's first token (a causal model's last),
MNLI is matched, and texts are cut to 256 tokens. GLUE's test labels are not published, so its
validation set is split: 1,000 records (half, if there are at most 5,000) select the model, and the
rest are reported on. The paper reports Matthews correlation for CoLA, Pearson correlation for STS-B
and accuracy for the others.

There are three differences. The split is drawn from `split_seed`, not from the reference's random
state, so the parts have the same sizes but not the same records. `train(validation=...)` selects by
the loss, while the reference selects by the metric. The reference trains with the dropout of the
base and of transformers' head; here the base stays in eval mode, the head is the paper's formula,
and `TrainConfig.dropout` applies only to the edits.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import torch
from transformer_lens.model_bridge import TransformerBridge

from reftlens.data import written
from reftlens.edit.reft import Reft
from reftlens.paper.tasks.base import Family, Record, Task
from reftlens.paper.tasks.pairs import join, tells_texts_apart
from reftlens.paper.tasks.records import Raw, of_hub, parse
from reftlens.paper.tasks.scoring import accuracy, is_number, same_text
from reftlens.paper.tasks.tables import read_csv, read_tsv
from reftlens.results import Answered, Evaluation
from reftlens.training.objectives import Classification, Objective, Regression
from reftlens.training.objectives.base import Example

logger = logging.getLogger(__name__)

HUB = "nyu-mll/glue"
"""Its name on the hub, with one configuration per task."""
_SUFFIXES = (".tsv", ".csv", ".jsonl", ".json")


@final
@dataclass(frozen=True)
class Glue(Task):
    """One of the eight tasks.

    Local files are those of GLUE's own download (`MNLI/dev_matched.tsv`), or JSON Lines, a JSON
    list or comma-separated values with the columns of the hub. QQP's own file has broken lines,
    which raise an error with their numbers.
    """

    family: ClassVar[Family] = "glue"
    config: str
    """Its name on the hub."""
    columns: tuple[str, ...]
    """Columns of its one or two texts on the hub. The label's column is "label"."""
    labels: tuple[str, ...]
    """Name of each class, in the order of the hub's numbers; empty if the answer is a number from 0 to 5."""
    official: tuple[str, ...]
    """Columns of the texts, then of the label, in GLUE's own files."""
    header: tuple[str, ...] = ()
    """All columns of GLUE's own file, if it has no header line."""
    metric_name: str = "accuracy"
    max_length: int = 256
    """Maximum number of tokens. Longer texts are cut, and the log counts them."""
    split_seed: int = 42
    """Seed of the split of the validation set into records for model selection and for reporting."""

    @property
    def metric(self) -> str:
        return self.metric_name

    def load(self, split: str, *, source: str | Path | None = None, limit: int | None = None) -> list[Record]:
        """Loads the records of a split, in order.

        Args:
            split: "train"; "validation", the part of GLUE's validation set for model selection;
                "test", the rest of it.
            source: a file of that set; a folder with such files, or with one folder per task; or a
                dataset on the hub. The default is GLUE on the hub.
            limit: number of records to load, from the first; all by default.

        Raises:
            ValueError: If the split is unknown, or a record is malformed. The message names file,
                line and fault.
            FileNotFoundError: If the source does not exist.
        """
        if split not in ("train", "validation", "test"):
            raise ValueError(f"split must be train, validation or test, got {split!r}")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        place = HUB if source is None else source
        records = [self._record(raw) for raw in self._read(place, train=split == "train")]
        if not records:
            raise ValueError(f"{place} has no records of {self.name}")
        if split != "train":
            # Before the limit is applied: with or without one, a record is in the same part.
            chosen = set(self._to_choose_by(len(records)))
            records = [record for row, record in enumerate(records) if (row in chosen) == (split == "validation")]
        return records[:limit]

    def _to_choose_by(self, n_records: int) -> list[int]:
        """Returns the rows of the validation set for model selection."""
        if n_records < 2:
            raise ValueError(
                f"{self.name}'s validation set is split in two, so it must have at least 2 records, got {n_records}"
            )
        order = torch.randperm(n_records, generator=torch.Generator().manual_seed(self.split_seed))
        rows: list[int] = order[: 1000 if n_records > 5000 else n_records // 2].tolist()
        return rows

    def _read(self, source: str | Path, *, train: bool) -> Iterator[Raw]:
        place = Path(source)
        if place.is_dir():
            place = self._in_folder(place, train=train)
        if place.is_file():
            match place.suffix:
                case ".tsv":
                    return read_tsv(place, header=self.header)
                case ".csv":
                    return read_csv(place)
                case _:
                    return parse(place, shown=str(place))
        # At most one slash, as in owner/name: anything longer was meant as a path.
        if isinstance(source, str) and source.count("/") <= 1 and place.suffix not in _SUFFIXES:
            split = "train" if train else "validation_matched" if self.config == "mnli" else "validation"
            return of_hub(source, split=split, subset=self.config)
        raise FileNotFoundError(f"no such file or folder: {source}")

    def _in_folder(self, folder: Path, *, train: bool) -> Path:
        matched = "_matched" if self.config == "mnli" else ""
        names = ("train",) if train else (f"dev{matched}", f"validation{matched}", "validation")
        folders = (folder / self.name, folder / self.config, folder)
        paths = [where / f"{name}{suffix}" for where in folders for name in names for suffix in _SUFFIXES]
        for path in paths:
            if path.is_file():
                return path
        raise FileNotFoundError(
            f"neither {folder} nor its folders {self.name} and {self.config} have a file {' or '.join(names)} "
            f"({', '.join(_SUFFIXES)})"
        )

    def _record(self, raw: Raw) -> Record:
        as_on_hub = {*self.columns, "label"} <= raw.fields.keys()
        *columns, label = (*self.columns, "label") if as_on_hub else self.official
        # QQP has pairs in which a question is empty.
        first, *second = (raw.text(column, may_be_empty=len(columns) > 1) for column in columns)
        if label not in raw.fields:
            raise ValueError(f"{raw.where}: the field {label!r} is missing; the record has {', '.join(raw.fields)}")
        return Record(first, "", self._answer(raw, label), *second)

    def _answer(self, raw: Raw, column: str) -> str:
        """Returns the label's name, from its name or number in the file, or the real number."""
        value = str(raw.fields[column]).strip()
        if not self.labels:
            if not is_number(value) or not 0 <= float(value) <= 5:
                raise ValueError(f"{raw.where}: {column!r} must be a number from 0 to 5, got {value!r}")
            return value
        if value in self.labels:
            return value
        if value not in map(str, range(len(self.labels))):
            names = ", ".join(f"{number} or {name}" for number, name in enumerate(self.labels))
            raise ValueError(f"{raw.where}: {column!r} must be {names}, got {value!r}")
        return self.labels[int(value)]

    def objective(self, bridge: TransformerBridge) -> Objective:
        return Classification(bridge, len(self.labels)) if self.labels else Regression(bridge)

    def texts(self, bridge: TransformerBridge, records: Sequence[Record]) -> list[str]:
        """Returns the input text of each record: pairs are joined and cut to `max_length`, and the log reports the cuts.

        Raises:
            ValueError: If the model's tokenizer cannot join texts; see `pairs`.
        """
        texts, cut = join(
            bridge, [(written(record.prompt), record.second) for record in records], max_length=self.max_length
        )
        if any(cut):
            logger.warning("%s: %d of %d texts were cut to %d tokens", self.name, sum(cut), len(texts), self.max_length)
        if len(self.columns) > 1 and tells_texts_apart(bridge):
            logger.warning(
                "%s: %s has a token type for the second text, which is not used here",
                self.name,
                type(bridge.original_model).__name__,
            )
        return texts

    def examples(self, bridge: TransformerBridge, records: Sequence[Record]) -> list[Example]:
        answers = [self.labels.index(r.answer) if self.labels else float(r.answer) for r in records]
        return list(zip(self.texts(bridge, records), answers, strict=True))

    def outputs(
        self,
        bridge: TransformerBridge,
        reft: Reft | None,
        records: Sequence[Record],
        *,
        objective: Objective | None = None,
        batch_size: int = 16,
        progress: bool = True,
    ) -> list[str]:
        texts = self.texts(bridge, records)
        match objective:
            case Classification(n_classes=n) if n == len(self.labels):
                classes = objective.predict(bridge, reft, texts, batch_size=batch_size, progress=progress)
                return [self.labels[label] for label in classes]
            case Regression() if not self.labels:
                return list(map(str, objective.predict(bridge, reft, texts, batch_size=batch_size, progress=progress)))
        raise ValueError(
            f"{self.name} needs a trained head: pass the objective that the edit was trained with, "
            f"{f'Classification with {len(self.labels)} classes' if self.labels else 'Regression'}; got "
            f"{'none' if objective is None else objective.identity()}"
        )

    def score(self, outputs: Sequence[str], records: Sequence[Record]) -> Evaluation:
        """Compares new or stored outputs with the records' answers.

        If all outputs, or all answers, are the same, neither correlation is defined. Matthews' is
        then 0, as usual, and Pearson's is NaN.

        Raises:
            ValueError: If there are no records, the number of outputs differs, or an output is not
                a label or number.
        """
        for place, output in enumerate(outputs):
            if not (output.strip() in self.labels if self.labels else is_number(output)):
                wanted = " or ".join(self.labels) or "a number"
                raise ValueError(f"{self.name}: output {place} must be {wanted}, got {output[:60]!r}")
        plain = accuracy(
            self.name, outputs, records, judge=lambda output, answer: (output.strip(), same_text(output, answer))
        )
        rows = [_shown(row, record, judged=bool(self.labels)) for row, record in zip(plain.rows, records, strict=True)]
        score = plain.score
        if self.metric != "accuracy":
            values = [[self._number(row.prediction) for row in rows], [self._number(row.answer) for row in rows]]
            undefined = 0.0 if self.labels else math.nan
            # Matthews correlation of two classes is Pearson's of the labels 0 and 1.
            score = undefined if np.ptp(values, axis=1).min() == 0 else float(np.asarray(np.corrcoef(values))[0, 1])
        return Evaluation(task=self.name, metric=self.metric, score=score, rows=tuple(rows))

    def _number(self, text: str) -> float:
        return float(self.labels.index(text) if self.labels else text)


def _shown(row: Answered, record: Record, *, judged: bool) -> Answered:
    """Returns a row with both texts. Real-number answers are not marked right or wrong."""
    prompt = written(record.prompt) if record.second is None else f"{record.prompt}\n{record.second}"
    return Answered(prompt, row.output, row.prediction, row.answer, row.right if judged else None)


_ENTAILS = ("entailment", "not_entailment")
_SENTENCES = ("sentence1", "sentence2")

TASKS = (
    Glue(
        "MNLI",
        config="mnli",
        columns=("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
        official=(*_SENTENCES, "gold_label"),
    ),
    Glue(
        "SST-2",
        config="sst2",
        columns=("sentence",),
        labels=("negative", "positive"),
        official=("sentence", "label"),
    ),
    Glue(
        "MRPC",
        config="mrpc",
        columns=_SENTENCES,
        labels=("not_equivalent", "equivalent"),
        official=("#1 String", "#2 String", "Quality"),
    ),
    Glue(
        "CoLA",
        config="cola",
        columns=("sentence",),
        labels=("unacceptable", "acceptable"),
        official=("sentence", "label"),
        header=("source", "label", "mark", "sentence"),
        metric_name="Matthews correlation",
    ),
    Glue(
        "QNLI",
        config="qnli",
        columns=("question", "sentence"),
        labels=_ENTAILS,
        official=("question", "sentence", "label"),
    ),
    Glue(
        "QQP",
        config="qqp",
        columns=("question1", "question2"),
        labels=("not_duplicate", "duplicate"),
        official=("question1", "question2", "is_duplicate"),
    ),
    Glue("RTE", config="rte", columns=_SENTENCES, labels=_ENTAILS, official=(*_SENTENCES, "label")),
    Glue(
        "STS-B",
        config="stsb",
        columns=_SENTENCES,
        labels=(),
        official=(*_SENTENCES, "score"),
        metric_name="Pearson correlation",
    ),
)
"""Tasks in the order of the paper's tables."""
