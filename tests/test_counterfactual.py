"""Counterfactual examples against the causal model written out, and their splits."""

from __future__ import annotations

from collections import Counter

import pytest

import reftlens as rl

LETTERS = "ABCDEF"


def equality() -> rl.CausalModel:
    return rl.CausalModel(
        inputs=dict.fromkeys("abcd", LETTERS),
        variables={"left": lambda a, b: a == b, "right": lambda c, d: c == d},
        answer=lambda left, right: " yes" if left == right else " no",
        prompt=lambda a, b, c, d: f"{a} {b} {c} {d} =",
    )


def read(prompt: str) -> tuple[bool, bool]:
    a, b, c, d, _ = prompt.split()
    return a == b, c == d


@pytest.fixture(scope="module")
def pairs():
    return rl.counterfactuals(equality(), ["left", "right"], n=48, n_held_out=24)


def test_labels_are_those_of_the_equations(pairs) -> None:
    for pair in (*pairs.train, *pairs.held_out):
        (left, right), (other_left, other_right) = read(pair.base), read(pair.source)
        said = {True: " yes", False: " no"}
        by = {
            "left": said[other_left == right],
            "right": said[left == other_right],
            "everything": said[other_left == other_right],
            "nothing": said[left == right],
        }
        assert pair.label == by[pair.variable]
        assert (pair.base_label, pair.source_label) == (by["nothing"], by["everything"])
        assert set(pair.separates) == {name for name, answer in by.items() if answer != pair.label}
        assert pair.changes == (pair.label != pair.base_label)


def test_the_splits_share_no_prompt_and_are_balanced(pairs) -> None:
    texts = [{text for pair in part for text in (pair.base, pair.source)} for part in (pairs.train, pairs.held_out)]
    assert not texts[0] & texts[1]
    assert len({(pair.base, pair.source, pair.variable) for pair in pairs.train}) == 48
    for part, n in ((pairs.train, 48), (pairs.held_out, 24)):
        kinds = Counter((pair.variable, pair.label, pair.changes) for pair in part)
        assert len(kinds) == 8
        assert max(kinds.values()) - min(kinds.values()) <= 1
        assert sum(kinds.values()) == n
    small = [rl.counterfactuals(equality(), "left", n=4, n_held_out=2, seed=seed) for seed in (0, 0, 1)]
    assert small[0] == small[1] != small[2]


def test_a_split_by_value_keeps_values_apart() -> None:
    kept = {"a": "AB", "b": "AB"}
    found = rl.counterfactuals(equality(), "left", n=40, n_held_out=8, by_value=kept)
    for part, inside in ((found.train, False), (found.held_out, True)):
        assert {text.split()[0] in "AB" for pair in part for text in (pair.base, pair.source)} == {inside}


def test_only_pairs_that_tell_a_hypothesis_apart() -> None:
    found = rl.counterfactuals(equality(), "left", n=20, n_held_out=20, where=lambda pair: "right" in pair.separates)
    for pair in found.train:
        (left, right), (other_left, other_right) = read(pair.base), read(pair.source)
        assert (other_left == right) != (left == other_right)


def test_two_variables_together_and_an_input() -> None:
    model = equality()
    base, source = dict(zip("abcd", "AABB", strict=True)), dict(zip("abcd", "ABCD", strict=True))
    assert model.run(base) == {**base, "left": True, "right": True, "answer": " yes"}
    assert model.interchange(base, source, ["left"]) == " no"
    assert model.interchange(base, source, ["left", "right"]) == " yes"
    assert model.interchange(base, source, ["b"]) == " no"


def test_arbitrary_labels_are_of_those_that_occur_and_independent(pairs) -> None:
    labels = rl.analysis.arbitrary_labels(pairs.train)
    assert {pair.label for pair in labels} == {" yes", " no"}
    assert [pair[:2] for pair in labels] == [pair[:2] for pair in pairs.train]
    same = sum(one.label == other.label for one, other in zip(labels, pairs.train, strict=True))
    assert 0.25 < same / len(labels) < 0.75
    assert labels == rl.analysis.arbitrary_labels(pairs.train)
    assert labels != rl.analysis.arbitrary_labels(pairs.train, seed=1)


def test_what_cannot_be_drawn_is_refused() -> None:
    model = equality()
    with pytest.raises(ValueError, match=r"Unknown variable 'up'\. Choose from: a, b, c, d, left, right"):
        rl.counterfactuals(model, "up", n=1, n_held_out=1)
    with pytest.raises(ValueError, match="too few different examples of 'left' for 5"):
        rl.counterfactuals(model, "left", n=5, n_held_out=1, where=lambda pair: pair.base == "A A B B =")
    with pytest.raises(ValueError, match="with some of its values but not all"):
        rl.counterfactuals(model, "left", n=1, n_held_out=1, by_value={"a": LETTERS})
    with pytest.raises(ValueError, match="answer depends on up, but only these come before it"):
        rl.CausalModel({"a": LETTERS}, {}, lambda up: " yes", lambda a: a)
