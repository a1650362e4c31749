"""Measures that compare a model's output with the target of your own data.

| name | what is compared | value |
|---|---|---|
| `prefix` | the output up to the target's end; a word must end there | 0 or 1 |
| `exact` | the whole output | 0 or 1 |
| `first word` | the first words | 0 or 1 |
| `rouge-l` | the longest common subsequence of words: its F-measure (Lin 2004) | 0 to 1 |
| `chrf` | character n-grams: chrF / 100 (Popović 2015), by sacrebleu, if it is installed | 0 to 1 |
| `module:function` | a function of yours: output and target -> a number or a bool | any |

All ignore white space at either end. An edit that was not trained to end its answers goes on after
them: `exact` then counts every answer as wrong, and `prefix` does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from reftlens.files.modules import import_named


class Measure(NamedTuple):
    """A function of output and target, and the name that tables show."""

    label: str
    compare: Callable[[str, str], float | bool]


def measure_named(name: str) -> Measure:
    """Returns a measure by its name, or a function of yours by `module:function`.

    Raises:
        ValueError: If there is no such measure or function, or its library is not installed.
    """
    if name in _MEASURES:
        return _MEASURES[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(
            f"Unknown metric {name!r}. Choose from: {', '.join(_MEASURES)}, or name a function as module:function"
        )
    try:
        found = getattr(import_named(module), function, None)
    except ImportError as error:
        raise ValueError(f"the metric {name!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"the metric {name!r} is not a function: {module} has no function {function!r}")
    return Measure(function, found)


def _exact(output: str, target: str) -> bool:
    return output.strip() == target.strip()


def _prefix(output: str, target: str) -> bool:
    output, target = output.strip(), target.strip()
    after = output[len(target) :]
    # "Romeo" does not answer "Rome".
    return output.startswith(target) and not (target[-1:].isalnum() and after[:1].isalnum())


def _first_word(output: str, target: str) -> bool:
    return output.split()[:1] == target.split()[:1]


def _rouge_l(output: str, target: str) -> float:
    words, wanted = output.split(), target.split()
    # The table of longest common subsequences, of which only the last row is needed.
    row = [0] * (len(wanted) + 1)
    for word in words:
        before = row
        row = [0]
        for place, other in enumerate(wanted):
            row.append(before[place] + 1 if word == other else max(before[place + 1], row[place]))
    # The F-measure 2 P R / (P + R) with P = L / words and R = L / wanted.
    return 2 * row[-1] / max(1, len(words) + len(wanted))


def _chrf(output: str, target: str) -> float:
    try:
        from sacrebleu import sentence_chrf
    except ImportError as error:
        raise ValueError("the metric 'chrf' needs sacrebleu: pip install sacrebleu") from error
    return float(sentence_chrf(output.strip(), [target.strip()]).score) / 100


_MEASURES = {
    "prefix": Measure("match up to the target's end", _prefix),
    "exact": Measure("exact match", _exact),
    "first word": Measure("match of the first word", _first_word),
    "rouge-l": Measure("ROUGE-L", _rouge_l),
    "chrf": Measure("chrF / 100", _chrf),
}
