"""The paper's side claims: planted truths are found, controls fail, and what a model cannot show is said."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from conftest import make_bridge
from typer.testing import CliRunner

import reftlens as rl
from reftlens import plot
from reftlens.cli import app
from reftlens.paper.claims import codebook, compose, manner, material, memorise, overhead
from reftlens.paper.claims.decoding import agreement, greedy_tokens, returned
from reftlens.results.claims import Claim, Codebook, Coded, Memorised, Overhead, Recall, Spoken, Timed

PLAIN = "The tower stands in the city of"
CLAIM = Claim("it works", "someone", (("rank", "1", "2"),), "model")


@pytest.fixture(scope="module")
def organism():
    return rl.load_bridge("facts-small")


def test_greedy_tokens_are_the_most_probable_one_after_the_other(gpt2, make_reft) -> None:
    reft, prompts = make_reft(), ["The tower stands in the city of", "The weaver"]
    given = greedy_tokens(gpt2, reft, prompts, 4)
    for prompt, row in zip(prompts, given, strict=True):
        batch = rl.encode(gpt2, [prompt])
        tokens = batch.tokens
        for place in range(4):
            mask = torch.zeros_like(tokens, dtype=torch.bool)
            mask[:, : batch.tokens.shape[1]] = True
            with torch.no_grad(), reft.hooks(gpt2, mask):
                best = gpt2(tokens, use_cache=False)[0, -1].argmax()
            assert best == row[place]
            tokens = torch.cat([tokens, best.view(1, 1)], dim=1)


def test_the_model_s_own_generation_config_changes_no_token(organism) -> None:
    """transformers fills what is unset from it: EOS would end the text, and the penalty would choose other tokens."""
    tokens, n = rl.encode(organism, [PLAIN]).tokens, 6
    for _ in range(n):
        with torch.no_grad():
            tokens = torch.cat([tokens, organism(tokens)[:, -1:].argmax(-1)], dim=1)
    wanted, own = tokens[:, -n:], organism.original_model.generation_config
    before = own.eos_token_id, own.repetition_penalty
    try:
        own.eos_token_id, own.repetition_penalty = int(wanted[0, 1]), 5.0
        assert torch.equal(greedy_tokens(organism, None, [PLAIN], n), wanted)
        assert organism.original_model.generation_config is own
    finally:
        own.eos_token_id, own.repetition_penalty = before


def test_what_the_model_says_is_returned_whole_and_a_wrong_word_ends_it(gpt2) -> None:
    prompt = "The tower stands"
    said = gpt2.tokenizer.decode(greedy_tokens(gpt2, None, [prompt], 3)[0])
    wanted = rl.encode(gpt2, [prompt], [said]).labels
    n = int((wanted >= 0).sum())
    if wanted[wanted >= 0].tolist() == greedy_tokens(gpt2, None, [prompt], n)[0].tolist():
        assert returned(gpt2, None, [prompt], [said]) == ([n], [n])
    assert agreement([5, 6, 7], [5, 6, 8]) == 2
    assert agreement([5], [5, 6]) == 1
    assert agreement([4, 6], [5, 6]) == 0


def test_a_context_that_is_too_short_is_refused(gpt2) -> None:
    with pytest.raises(ValueError, match="exceed the context of 64"):
        greedy_tokens(gpt2, None, ["The tower"], 64)


def test_words_are_whole_different_and_enough(organism) -> None:
    found = material.words(organism, 50, seed=0)
    assert len(set(found)) == 50
    assert all(len(organism.tokenizer(word).input_ids) == 1 for word in found)
    with pytest.raises(ValueError, match="ask for fewer"):
        material.words(organism, 5000, seed=0)


@pytest.mark.slow
def test_one_token_is_memorised_and_not_by_an_untrained_vector(organism) -> None:
    config = memorise.MemoriseConfig(lengths=(1,), depth=0.7, epochs=25, lr=5e-2)
    result = memorise.memorise(organism, " castle tower bridge gate", config, model="organism", progress=False)
    assert [row.returned for row in result.of("text") if row.length == 1] == [1]
    assert all(row.returned == 0 for row in result.of("text, vector not trained"))
    # Behind the last block no later token sees the edit: what comes back beyond one token is the model's own.
    assert {row.layer for row in result.of("text, edited after the last block")} == {5}
    assert result.claim.settings[0][1:] == ("128, 256, 512, 1024, 2048", "1")


def test_the_sentence_on_recall_says_where_it_failed_or_that_it_did_not() -> None:
    rows = (Recall("a", 0, 4, 4, 0), Recall("a", 0, 8, 3, 0), Recall("b", 0, 4, 4, 0), Recall("c", 0, 4, 2, 0))
    whole, above, none, verdict = Memorised(CLAIM, rows).findings()
    assert whole == "a: longest string returned whole 4 tokens; first failure at 8 tokens, of which 3 came back"
    assert "the limit lies above" in above
    assert "no string was returned whole" in none
    assert verdict.endswith("model gave back 0")


@pytest.mark.slow
def test_a_codebook_is_held_by_names_and_not_by_shuffled_ones(organism) -> None:
    keys = {"names": ["Mara Velden", "Ivo Tarn", "Senna Quill", "Doran Lund"]}
    config = codebook.CodebookConfig(pairs=(4,), ranks=(8,), depth=0.17, epochs=80, lr=5e-2)
    (row,) = codebook.codebook(organism, keys, config, model="organism", progress=False).rows
    assert row.accuracy == 1.0
    assert row.shuffled == 0.0
    assert row.base == 0.0
    with pytest.raises(ValueError, match="8 pairs need as many keys"):
        codebook.codebook(organism, keys, replace(config, pairs=(8,)), model="organism", progress=False)


def test_speech_is_counted_by_its_words(organism) -> None:
    known = material.material_for("facts-small", seed=0)
    base = material.speak(organism, None, known, known.asks[:12], name="base", taught_move=False)
    assert (base.manner, base.kept) == (0.0, 1.0)
    asks = [replace(ask, facts=("never said",)) for ask in known.asks[:12]]
    assert material.speak(organism, None, known, asks, name="base", taught_move=False).kept == 0.0
    assert len(material.material_for("gpt2", seed=0).asks) == 28


@pytest.mark.slow
def test_a_manner_is_learnt_from_five_examples_and_not_from_their_controls(organism) -> None:
    known = material.material_for("facts-small", seed=0)
    few = replace(known, asks=known.asks[:25])
    quick = replace(manner.SMALL, epochs=40, lr=1e-2)
    result = manner.manner(organism, few, quick, model="organism", progress=False)
    base, learnt, shuffled, plain = result.rows
    assert base.manner == plain.manner == 0.0
    assert learnt.manner > 0.5
    assert learnt.kept > 0.8
    assert shuffled.together < learnt.together / 2
    with pytest.raises(ValueError, match="more prompts than examples"):
        manner.manner(organism, replace(known, asks=known.asks[:5]), model="organism", progress=False)


@pytest.mark.slow
def test_the_limit_of_one_vector_is_found() -> None:
    result = memorise.run("facts-small", progress=False)
    assert any(row.returned == row.length for row in result.of("text"))
    assert any(row.returned < row.length for row in result.of("text"))
    assert max(row.returned for row in result.of("text, edited after the last block")) <= 1


@pytest.mark.slow
def test_the_codebook_grows_with_the_rank_on_names_and_not_on_keys_that_the_model_cannot_tell_apart() -> None:
    rows = codebook.run("facts-small", progress=False).rows
    accuracy = {(row.keys, row.pairs, row.rank): row.accuracy for row in rows}
    names = "names that the model knows"
    assert accuracy[names, 32, 1] < accuracy[names, 32, 4] < accuracy[names, 32, 16]
    assert accuracy[names, 32, 16] > 0.9
    assert accuracy[codebook.PAPER_KEYS, 32, 16] < 0.2


@pytest.mark.slow
def test_five_examples_with_the_papers_settings() -> None:
    _, learnt, shuffled, plain = manner.run("facts-small", progress=False).rows
    assert learnt.manner > 0.6
    assert learnt.kept > 0.9
    assert shuffled.together < 0.1
    assert plain.manner == 0.0


@pytest.mark.slow
def test_new_tokens_edited_cost_more_than_the_prompt_edited() -> None:
    result = overhead.run("facts-small", progress=False)
    _, _, prompt, everything = result.rows
    assert result.ratio(everything)[1] > result.ratio(prompt)[1]
    assert (prompt.changes, everything.changes) == (6, 6 * 256)


@pytest.mark.slow
def test_two_halves_do_both_and_one_half_does_not() -> None:
    _, first, second, both, same, idle = compose.run("facts-small", progress=False).rows
    # A half that was taught one thing does a fifth of the other half's thing at most; not none, as answers hit by chance.
    assert first.manner > 0.8
    assert second.manner < first.manner / 5
    assert second.moved > 0.3
    assert first.moved < second.moved / 5
    assert both.together > max(first.together, second.together, same.together, idle.together) + 0.1


@pytest.mark.slow
def test_composition_asks_only_what_was_not_taught(gpt2) -> None:
    known = material.material_for("gpt2", seed=0)
    config = compose.ComposeConfig(rank=2, examples=2, epochs=1)
    result = compose.compose(gpt2, replace(known, asks=known.asks[:5]), config, model="random", progress=False)
    assert {row.n for row in result.rows} == {3}
    assert [row.edit for row in result.rows][3:5] == ["both halves", "both tasks in one half"]


def test_an_edit_of_the_prompt_computes_one_change_a_site_and_one_of_new_tokens_one_a_step() -> None:
    bridge = make_bridge("gpt2")
    config = overhead.OverheadConfig(new_tokens=8, rank=2, rounds=2)
    result = overhead.overhead(bridge, config, model="random", progress=False)
    layers = bridge.cfg.n_layers
    assert [row.changes for row in result.rows] == [0, 0, layers, layers * 8]
    assert {row.passes for row in result.rows} == {8}
    assert all(second > 0 for row in result.rows for second in row.seconds)


def test_ratios_are_of_the_same_round() -> None:
    rows = (Timed("base", (1.0, 2.0, 4.0), 0, 8), Timed("edited", (2.0, 4.0, 8.0), 3, 8))
    result = Overhead(CLAIM, rows)
    assert result.ratio(rows[1]) == (2.0, 2.0, 2.0)
    assert "+100.0% CPU time" in result.findings()[0]


def test_figures_are_drawn_of_results_alone() -> None:
    rows = tuple(Coded("keys", n, rank, 0.5, 0.0, 0.0) for n in (8, 32) for rank in (1, 4))
    spoken = tuple(Spoken(name, 0.5, 0.25, 0.5, 0.25, 8, "hello") for name in ("base", "edited"))
    for figure in (
        plot.memorised(Memorised(CLAIM, (Recall("a", 0, 4, 4, 0), Recall("a", 0, 8, 3, 0)))),
        plot.codebook(Codebook(CLAIM, rows)),
        plot.composed(compose.Composed(CLAIM, spoken)),
        plot.mannered(manner.Mannered(CLAIM, spoken)),
        plot.overhead(Overhead(CLAIM, (Timed("base", (1.0,), 0, 8), Timed("edited", (1.1,), 3, 8)))),
    ):
        assert plot.png(figure)[:4] == b"\x89PNG"
        assert all(text.get_fontsize() >= 8 for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize")))


@pytest.mark.slow
def test_the_command_leaves_a_figure_and_numbers_and_prints_them_as_json(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(manner, "SMALL", replace(manner.SMALL, epochs=1))
    out = tmp_path / "manner"
    done = CliRunner().invoke(app, ["claim", "manner", "--quiet", "--json", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads((out / "claim.json").read_text())
    assert (out / "claim.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("name", ["memorise", "codebook", "compose", "manner", "overhead"])
def test_help_shows_an_example_and_a_wrong_model_is_refused(name, tmp_path) -> None:
    assert f"reftlens claim {name} --model gpt2" in CliRunner().invoke(app, ["claim", name, "--help"]).output
    done = CliRunner().invoke(app, ["claim", name, "--model", "no-such", "--quiet", "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert not list(tmp_path.iterdir())
