"""The files of LLM-Adapters (Hu et al. 2023, arXiv:2304.01933; Apache-2.0): `{instruction, input, output, answer}`.

They lie on GitHub, at the commit below, in the repository that the reference implementation forked. The test files were
read from that commit and have the paper's numbers of records; fetching them by address, and the large training files, could
not be tried without a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reftlens.paper.tasks.records import Raw, read

PUBLISHED = "https://raw.githubusercontent.com/AGI-Edgerunners/LLM-Adapters/816657208af4db747803f87ba40a4c71383fed7a"
"""Of March 2024."""


def read_split(
    name: str, split: str, *, splits: Sequence[str], source: str | Path | None = None, limit: int | None = None
) -> list[Raw]:
    """The records of a task or training set, unchecked.

    Args:
        name: of the task.
        split: one of `splits`.
        splits: those it has; a set that has "train" alone lies in `ft-training_set`.
        source: a file, a dataset of the hub, or a folder in this layout or the reference implementation's, which has
            `<task>/<split>.json`.
        limit: only so many, the first ones.

    Raises:
        ValueError: for another split, or a file that is not of records.
        FileNotFoundError: if the source does not exist.
    """
    if split not in splits:
        raise ValueError(f"{name} has the splits {', '.join(splits)}, not {split!r}")
    published = f"ft-training_set/{name}.json" if tuple(splits) == ("train",) else f"dataset/{name}/{split}.json"
    within = (f"{name}/{split}.json", f"{name}/{split}.jsonl", published)
    found = f"{PUBLISHED}/{published}" if source is None else source
    return read(found, within=within, split=split, limit=limit)
