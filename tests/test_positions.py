"""Position rules against a plain loop over rows, on both padding sides and short prompts."""

from __future__ import annotations

import json

import pytest
import torch

import reftlens as rl
from reftlens.positions import (
    All,
    AnySpan,
    At,
    First,
    Generated,
    Last,
    LastOf,
    Positions,
    Prompts,
    Span,
    from_spec,
    parse,
    union_parts,
)

LENGTHS = [1, 2, 3, 5, 8]


def prompt_mask(*, left: bool) -> torch.Tensor:
    width = max(LENGTHS) + 2
    mask = torch.zeros(len(LENGTHS), width, dtype=torch.bool)
    for row, length in enumerate(LENGTHS):
        start = width - length if left else 0
        mask[row, start : start + length] = True
    return mask


def picked(rule, *, left: bool) -> list[list[int]]:
    """Places, counted inside each prompt, that the rule picks."""
    mask = rule.mask(prompt_mask(left=left))
    assert not bool((mask & ~prompt_mask(left=left)).any())
    starts = prompt_mask(left=left).int().argmax(dim=1).tolist()
    return [
        [column - start for column in row.nonzero().flatten().tolist()] for row, start in zip(mask, starts, strict=True)
    ]


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(
    ("rule", "places"),
    [
        (First(3), lambda n: range(min(3, n))),
        (Last(3), lambda n: range(n - min(3, n), n)),
        (First(3, half=True), lambda n: range(min(3, n // 2))),
        (Last(3, half=True), lambda n: range(n - min(3, -(-n // 2)), n)),
        (All(), lambda n: range(n)),
        (At(0), lambda n: [0]),
        (At(-1), lambda n: [n - 1]),
        (First(2) | Last(1), lambda n: sorted({*range(min(2, n)), n - 1})),
        (All() - Last(1), lambda n: range(n - 1)),
        (All() - First(1) - Last(1), lambda n: range(1, n - 1)),
    ],
    ids=lambda value: repr(value) if isinstance(value, Positions) else "",
)
def test_rules_pick_the_places_that_a_loop_picks(rule, places, left) -> None:
    assert picked(rule, left=left) == [list(places(n)) for n in LENGTHS]


def test_paper_rule_never_overlaps_and_always_edits_the_last_token() -> None:
    first, last = (
        First(7, half=True).mask(prompt_mask(left=False)),
        Last(7, half=True).mask(prompt_mask(left=False)),
    )
    assert not bool((first & last).any())
    assert bool(last.any(dim=1).all())


@pytest.mark.parametrize("text", ["f5", "l1", "f7+l7", "l2+f3"])
def test_short_form_reads_and_specs_round_trip(text) -> None:
    rule = parse(text)
    assert sorted(part.count for part in union_parts(rule)) == sorted(int(c) for c in text if c.isdigit())
    assert from_spec(rule.spec()) == rule
    assert from_spec((All() - At(2)).spec()) == All() - At(2)


@pytest.mark.parametrize(
    "text", ["", "x3", "f", "f0", "f-1", "f1.5", "f5+", "f5+f5", "f5 + l5", "F5", "l05", "f5+l5+l1", "every"]
)
def test_malformed_strings_are_refused(text) -> None:
    with pytest.raises(ValueError, match="cannot parse positions"):
        parse(text)


@pytest.mark.parametrize("make", [lambda: First(0), lambda: Last(-1), lambda: First(True), lambda: At(True)])
def test_malformed_rules_are_refused(make) -> None:
    with pytest.raises(ValueError, match="needs"):
        make()


def test_a_place_that_a_prompt_lacks_is_an_error_that_names_the_row() -> None:
    with pytest.raises(ValueError, match=r"row 0.*1 tokens"):
        At(1).mask(prompt_mask(left=False))
    with pytest.raises(ValueError, match=r"row 0.*2 tokens"):
        At(-3).mask(prompt_mask(left=False)[1:])


@pytest.mark.parametrize("spec", [None, {}, {"rule": "first"}, {"rule": "all", "x": 1}, {"rule": "eval", "code": "1"}])
def test_foreign_specs_are_refused(spec) -> None:
    with pytest.raises(ValueError, match="not a position rule"):
        from_spec(spec)


# Rules that read the text, and what follows the prompt.


def spans(bridge, rule, prompts, **options) -> list[str]:
    """The text of the picked tokens of each row."""
    batch = rl.encode(bridge, prompts, **options)
    mask = rule.mask(batch.prompts)
    return [bridge.tokenizer.decode(row[picked]) for row, picked in zip(batch.tokens, mask, strict=True)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("bos", [True, False])
def test_span_picks_the_tokens_of_its_text(gpt2, side, bos) -> None:
    prompts = ["The old tower and the old river", "An old tower ."]
    options = {"padding_side": side, "prepend_bos": bos}
    assert [t.strip() for t in spans(gpt2, Span("old tower"), prompts, **options)] == ["old tower", "old tower"]
    assert spans(gpt2, Span("old"), prompts[:1], **options)[0].split() == ["old", "old"]
    assert spans(gpt2, Span("old", -1), prompts[:1], **options)[0].strip() == "old"
    first, last = (Span("old", n).mask(rl.encode(gpt2, prompts[:1], **options).prompts)[0] for n in (0, -1))
    assert int(first.nonzero().max()) < int(last.nonzero().min())


def test_span_of_any_text_covers_it_whatever_the_tokens(gpt2) -> None:
    prompt = "Ostra — ölig 日本 <b>$x$</b> a+b (c)"
    for text in ("日本", "ölig", "$x$", "a+b (c)", prompt):
        assert text in spans(gpt2, Span(text), [prompt])[0]


def test_span_that_is_not_there_is_an_error(gpt2) -> None:
    batch = rl.encode(gpt2, ["the old tower", "the river"])
    with pytest.raises(ValueError, match="row 1: 'the river'"):
        Span("old").mask(batch.prompts)
    with pytest.raises(ValueError, match="occurs only 1 times in the prompt in row 0"):
        Span("the", 1).mask(batch.prompts)
    with pytest.raises(ValueError, match=r"pass the batch of rl.encode instead"):
        Span("the").mask(batch.prompt_mask)
    with pytest.raises(ValueError, match="empty"):
        Span("")


def test_generated_picks_completions_and_joins() -> None:
    mask = prompt_mask(left=True)
    completion = ~mask
    prompts = Prompts(mask, completion)
    assert torch.equal(Generated().mask(prompts), completion)
    assert not bool(Generated().mask(mask).any())
    assert torch.equal((Last(1) | Generated()).mask(prompts), Last(1).mask(mask) | completion)
    flags = [
        rule.generated for rule in (All(), Generated(), All() | Generated(), Generated() - All(), All() - Generated())
    ]
    assert flags == [False, True, True, True, False]


@pytest.mark.parametrize(
    "rule", [Span("a b"), Span("a", -1), LastOf(AnySpan(("a", "b c"))), Generated(), All() - (Span("x", 0) | Last(2))]
)
def test_specs_of_all_rules_round_trip(rule) -> None:
    assert from_spec(json.loads(json.dumps(rule.spec()))) == rule


def test_preview_shows_the_edited_tokens(gpt2) -> None:
    shown = rl.preview(gpt2, Span("tower"), "The <b> tower </b> stands")
    assert "[ tower]" in repr(shown)
    page = shown._repr_html_()
    assert "<b>" not in page
    assert page.count("edited") == sum(shown.edited) >= 1
    assert rl.preview(gpt2, "l1", "The tower stands").edited[-1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_any_span_finds_each_prompts_own_text_and_last_of_its_last_token(gpt2, side) -> None:
    prompts = ["The old tower stands by the river", "A weaver speaks", "The old weaver and the tower"]
    rule = AnySpan(("old", "old tower", "weaver", "tower"))
    batch = rl.encode(gpt2, prompts, padding_side=side)
    assert [text.strip() for text in spans(gpt2, rule, prompts, padding_side=side)] == ["old tower", "weaver", "weaver"]
    last = LastOf(rule).mask(batch.prompts)
    for row, picked in enumerate(rule.mask(batch.prompts)):
        places = picked.nonzero().flatten().tolist()
        assert last[row].nonzero().flatten().tolist() == places[-1:]
    assert torch.equal(LastOf(All()).mask(batch.prompts), Last(1).mask(batch.prompts))
    with pytest.raises(ValueError, match="row 1 contains none of the 1 texts: 'A weaver speaks'"):
        AnySpan(("tower",)).mask(batch.prompts)
    with pytest.raises(ValueError, match=r"pass the batch of rl.encode instead"):
        rule.mask(batch.prompt_mask)
    for wrong in ((), ("tower", "")):
        with pytest.raises(ValueError, match="needs a tuple of texts"):
            AnySpan(wrong)
