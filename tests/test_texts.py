"""The one way in for prompts and answers: any iterable in its own order, and nothing else."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from reftlens.data import as_prompts, as_texts

THREE = ["c", "a", "b"]
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    "values",
    [
        THREE,
        tuple(THREE),
        (text for text in THREE),
        dict.fromkeys(THREE).keys(),
        pd.Series(["a", "b", "c"], index=[0, 1, 2]).loc[[2, 0, 1]],
        pd.Series(THREE, index=["x", "x", "y"], dtype="string"),
        np.array(THREE),
        np.array(THREE, dtype=object),
        Dataset.from_dict({"prompt": THREE})["prompt"],
    ],
    ids=lambda values: type(values).__name__,
)
def test_every_iterable_of_texts_is_read_once_in_its_own_order(values) -> None:
    found = as_prompts(values) if isinstance(values, tuple) else as_texts(values, "prompts")
    assert found == THREE
    assert all(type(text) is str for text in found)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("a text", r"single string: write \['a text'\]"),
        (b"a text", "single string"),
        (None, "got NoneType"),
        (3, "got int 3"),
        ({"a", "b"}, "set, which has no order"),
        ({"a": "b"}, "dict, which has several parts"),
        (pd.DataFrame({"prompt": THREE}), "DataFrame, which has several parts"),
        (np.array("a"), "got ndarray"),
        (np.array([["a"]]), "got ndarray .* at index 0"),
        (["a", None], "got NoneType None at index 1"),
        (pd.Series(["a", float("nan")]), "got float nan at index 1"),
        ([["a"]], "got list .* at index 0"),
        (Dataset.from_dict({"prompt": THREE}), "got dict .* at index 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_not_a_list_of_texts_is_refused(values, message) -> None:
    with pytest.raises(TypeError, match=message):
        as_texts(values, "prompts")


def test_answers_are_counted() -> None:
    with pytest.raises(ValueError, match="got 2 prompts and 3 answers"):
        as_texts(THREE, "answers", count=2)
    with pytest.raises(ValueError, match="the list of answers is empty"):
        as_texts([], "answers")


def test_a_conversation_is_a_prompt_and_not_a_list_of_prompts() -> None:
    assert as_prompts(["a", MESSAGES]) == ["a", tuple(MESSAGES)]
    with pytest.raises(TypeError, match=r"single conversation: write \[messages\]"):
        as_prompts(MESSAGES)
    with pytest.raises(TypeError, match=r"with a role and a content, got list .* at index 0"):
        as_prompts([[{"role": "user"}]])
