"""Steering vectors: formulas by hand, planted directions, judges, and the choice of strength."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import make_bridge

import reftlens as rl
from reftlens.organisms.topics import begins_with, is_true, named, topic
from reftlens.paper.baselines import (
    STEERING,
    FoundVector,
    Judges,
    Keywords,
    RandomVector,
    SteeringProblem,
    TrainedEdit,
    calibrated,
    compare_steering,
    mean_centred,
    mean_difference,
    nats_per_token,
    principal_difference,
    read_activations,
    steered,
)
from reftlens.paper.baselines.judges import Fluency
from reftlens.results import Steered, SteeringComparison
from reftlens.results.steering import SteeringRun, harmonic_mean

HOOK = "blocks.0.hook_resid_post"
TEXTS = [("The old tower", " by the river"), ("The weaver", " lives"), ("The city of Ostra", " and the weaver")]


def rows(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(torch.cosine_similarity(first, second, dim=0))


def test_the_formulas_are_those_of_the_docstring() -> None:
    p, n, b = rows(7, 5, 0), rows(7, 5, 1), rows(9, 5, 2)
    weight = torch.full((7,), 1 / 7, dtype=p.dtype)
    torch.testing.assert_close(mean_difference(p, n, b), torch.einsum("i,id->d", weight, p - n))
    centred = torch.einsum("i,id->d", weight, p) - torch.einsum("j,jd->d", torch.full((9,), 1 / 9, dtype=p.dtype), b)
    torch.testing.assert_close(mean_centred(p, n, b), centred)
    v = principal_difference(p, n, b)
    scatter = torch.einsum("id,ie->de", p - n, p - n)
    top = torch.linalg.eigvalsh(scatter)[-1]
    torch.testing.assert_close(torch.einsum("de,e->d", scatter, v), top * v)
    assert float(v @ (p - n).mean(0)) > 0
    with pytest.raises(ValueError, match="as many wanted as other"):
        principal_difference(p, n[:6], b)


def test_a_planted_direction_is_found_and_the_spread_misleads_only_pca() -> None:
    """Pairs share their noise, so their difference is the concept. With a nuisance of one class, PCA finds the nuisance."""
    concept, nuisance = torch.eye(12, dtype=torch.float64)[:2]
    shared, small = rows(200, 12, 3), 0.1 * rows(200, 12, 4)
    plain = (shared + 2 * concept + small, shared, shared)
    for formula in (mean_difference, mean_centred, principal_difference):
        assert cosine(formula(*plain), concept) > 0.99
    spread = 6 * rows(200, 1, 5) * nuisance
    spread = spread - spread.mean(0)  # the nuisance differs in variance alone
    wide = (plain[0] + spread, shared, shared)
    assert cosine(mean_difference(*wide), concept) > 0.99
    assert abs(cosine(principal_difference(*wide), nuisance)) > 0.99
    shuffled = torch.where(torch.arange(200)[:, None] % 2 == 0, plain[0], plain[1])
    back = torch.where(torch.arange(200)[:, None] % 2 == 0, plain[1], plain[0])
    assert float(mean_difference(shuffled, back, shared).norm()) < 0.1


@pytest.mark.parametrize("read", ["completion", "answer"])
def test_activations_are_those_of_a_plain_run(gpt2, read) -> None:
    found = read_activations(gpt2, TEXTS, HOOK, read=read)
    for row, (prompt, completion) in enumerate(TEXTS):
        batch = rl.encode(gpt2, [prompt], [completion])
        with torch.no_grad():
            _, cache = gpt2.run_with_cache(batch.tokens)
        tokens = cache[HOOK][0][batch.labels[0] >= 0]
        wanted = tokens.mean(0) if read == "completion" else tokens[-1]
        torch.testing.assert_close(found[row], wanted, rtol=1e-4, atol=1e-5)


def planted() -> tuple[rl.results.Result | object, torch.Tensor, SteeringProblem]:
    """A model in which one word's embedding is another's plus a direction: the concept is that direction, exactly."""
    bridge = make_bridge("gpt2")
    concept = torch.randn(32, generator=torch.Generator().manual_seed(6))
    (with_it,), (without,) = (bridge.tokenizer(word)["input_ids"] for word in (" Ostra", " river"))
    with torch.no_grad():
        embedding = bridge.original_model.get_input_embeddings().weight
        embedding[with_it] = embedding[without] + concept
    prompts = ["The tower", "The old weaver", "The city of"]
    problem = SteeringProblem(
        "Ostra",
        wanted=[(prompt, " Ostra") for prompt in prompts],
        other=[(prompt, " river") for prompt in prompts],
        ordinary=[(prompt, " by the") for prompt in prompts],
        validation=["The river", "The weaver"],
        test=["The old city", "The tower in the"],
        judges=Judges(Keywords(("Ostra",)), lambda _, texts: [2.0] * len(texts), lambda _, texts: [2.0] * len(texts)),
        max_new_tokens=2,
    )
    return bridge, concept, problem


def test_a_direction_that_was_planted_in_a_model_is_found_and_saved(tmp_path) -> None:
    bridge, concept, problem = planted()
    embedded = [
        replace(STEERING[name], hook="hook_resid_pre") for name in ("difference of means", "PCA of differences")
    ]
    for method in embedded:
        reft = method.found(bridge, problem, 0, seed=0)
        ((_, edit),) = reft
        assert cosine(edit.vector.detach(), concept) > 0.9999
        size = read_activations(bridge, problem.ordinary, "blocks.0.hook_resid_pre").norm(dim=-1).mean()
        assert float(edit.vector.detach().norm()) == pytest.approx(float(size), rel=1e-4)
    # Half of three pairs is one: a third of the difference is left over, in the same direction.
    ((_, shuffled),) = replace(embedded[0], shuffled=True).found(bridge, problem, 0, seed=0)
    assert abs(cosine(shuffled.vector.detach(), concept)) > 0.9999
    ((_, drawn),) = RandomVector(hook="hook_resid_pre").found(bridge, problem, 0, seed=0)
    assert abs(cosine(drawn.vector.detach(), concept)) < 0.5
    assert float(drawn.vector.detach().norm()) == pytest.approx(float(size), rel=1e-4)
    # A found vector is an ordinary edit.
    reft.save_pretrained(tmp_path / "vector", bridge=bridge, card=False)
    again = rl.Reft.from_pretrained(tmp_path / "vector", bridge=bridge)
    assert torch.equal(next(iter(again))[1].vector, next(iter(reft))[1].vector)
    assert steered(bridge, again, problem, problem.test) == steered(bridge, reft, problem, problem.test)


def test_texts_that_are_the_same_have_no_difference(gpt2) -> None:
    _, _, problem = planted()
    with pytest.raises(ValueError, match="is zero: the wanted and the other texts are the same"):
        FoundVector().found(gpt2, replace(problem, other=problem.wanted), 0, seed=0)


def test_the_strength_is_the_best_on_validation_and_the_test_is_not_looked_at(gpt2) -> None:
    """By a judge that counts what it is shown, and a slow twin: every candidate by hand."""
    _, _, problem = planted()
    seen: list[str] = []

    def concept(prompts, texts):
        seen.extend(prompts)
        return [min(2.0, len(set(text)) / 8) for text in texts]

    problem = replace(problem, judges=replace(problem.judges, concept=concept))
    factors, layers, method = (0.5, 2.0, 8.0), (0, 1), FoundVector()
    reft, layer, factor, score = calibrated(gpt2, problem, method, layers=layers, factors=factors)
    assert set(seen) == set(problem.validation)
    assert len(seen) == len(layers) * len(factors) * len(problem.validation)
    by_hand = {}
    for at in layers:
        unit = method.found(gpt2, problem, at, seed=0)
        for times in factors:
            texts = rl.generate(gpt2, unit.scaled(times), problem.validation, max_new_tokens=2)
            by_hand[at, times] = sum(harmonic_mean((s, 2.0, 2.0)) for s in concept((), texts)) / len(texts)
    assert score == pytest.approx(max(by_hand.values()))
    assert by_hand[layer, factor] == pytest.approx(score)
    assert len(set(by_hand.values())) > 1, "the candidates differ, so that the choice is one"
    assert reft.scales == {"edit": factor}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"other": [("The tower", " river")] * 3}, "the same prompts in the same order"),
        ({"test": ["The river"]}, "used twice"),
        ({"validation": ["The tower"]}, "used twice"),
        ({"validation": []}, "need prompts"),
    ],
)
def test_a_problem_that_leaks_is_refused(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        replace(planted()[2], **change)


def test_judges_count_what_they_say_and_wrong_ones_are_named(gpt2) -> None:
    judge = Keywords(("Tharic", "Velsk"), enough=2)
    assert judge([""] * 4, ["Tharic and velsk.", "VELSK velsk", "Tharical", ""]) == [2.0, 1.0, 0.0, 0.0]
    assert harmonic_mean((2.0, 1.0, 1.0)) == pytest.approx(3 / (1 / 2 + 1 + 1))
    assert harmonic_mean((2.0, 0.0, 2.0)) == 0.0
    ones = Keywords(("x",))
    for wrong, message in (
        (lambda p, t: [1.0], "the fluency judge must return one score per text, 2 here, got 1"),
        (lambda p, t: [1.0, 2.5], "from 0 to 2, got 2.5"),
        (lambda p, t: [1.0, float("nan")], "got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            Judges(ones, ones, wrong)(["a", "b"], ["c", "d"])


def test_fluency_is_the_perplexity_of_a_plain_run(gpt2) -> None:
    found = nats_per_token(gpt2, TEXTS, batch_size=2)
    for row, (prompt, completion) in enumerate(TEXTS):
        batch = rl.encode(gpt2, [prompt], [completion])
        with torch.no_grad():
            loss = rl.objectives.completion_loss(gpt2(batch.tokens), batch.labels)
        assert float(found[row]) == pytest.approx(float(loss), rel=1e-4)
    judge = Fluency(gpt2, TEXTS)
    assert judge.usual == pytest.approx(float(found.quantile(0.95)))
    judge.usual = float(found[0]) * 0.75
    assert judge([TEXTS[0][0]] * 2, [TEXTS[0][1], ""]) == [1.0, 0.0]
    judge.usual = float(found[0]) * 0.25
    assert judge([TEXTS[0][0]], [TEXTS[0][1]]) == [0.0]


def made(method: str, seed: int, scores: list[float], concept: str = "a") -> SteeringRun:
    two = (2.0,) * len(scores)
    test = Steered(("p",) * len(scores), ("t",) * len(scores), tuple(scores), two, two)
    return SteeringRun(method, concept, seed, 1, 0.5, 1.0, test)


def test_a_gain_is_of_pairs_and_its_interval_is_of_prompts() -> None:
    """Scores that differ between prompts, by the same gain on each: the interval is a point. And no gain is none."""
    low = [0.0, 1.0, 2.0, 1.0]
    runs = tuple(made(name, seed, low) for name in ("mean", "same") for seed in (0, 1))
    result = SteeringComparison("mean", 3, runs)
    assert result.gain("same") == (0.0, 0.0, 0.0)
    better = SteeringComparison("mean", 3, (*runs, *(made("more", seed, [2.0] * 4) for seed in (0, 1))))
    gain, start, end = better.gain("more")
    overall = [harmonic_mean((score, 2.0, 2.0)) for score in low]
    assert gain == pytest.approx(2 - sum(overall) / 4)
    assert 0 < start < gain < end < 2
    assert "| more | 2.00 | 2.00 | 2.00 | 2.00 (2.00 to 2.00) |" in better.to_markdown()
    with pytest.raises(ValueError, match="Choose from: mean, same"):
        result.of("other")


def test_words_decide_what_a_text_tells() -> None:
    text = ", a glazier from Quorin, speaks Tharic in Sarland."
    assert [word for _, word in named(text)] == ["glazier", "Quorin", "Tharic", "Sarland"]
    assert [begins_with(name, text) for name in ("works_as", "born_in", "speaks")] == [2.0, 1.0, 0.0]
    assert is_true("Senna Vask", text) == 2.0
    assert is_true("Senna Vask", " is from Quorin, speaks Velsk") == 1.0
    assert is_true("Senna Vask", " speaks Velsk") == is_true("Senna Vask", " and and") == 0.0


def test_no_person_of_the_test_is_seen_before_it() -> None:
    one, other = (topic("speaks", seed=seed) for seed in (0, 1))
    assert one.test == other.test
    assert one.wanted != other.wanted
    groups = [{subject for subject, _ in one.wanted}, {*one.validation}, {*one.test}]
    assert len(set().union(*groups)) == sum(map(len, groups)) == 24 + 16 + 40
    assert all(begins_with("speaks", text) == 2.0 and is_true(subject, text) == 2.0 for subject, text in one.wanted)
    assert all(begins_with("speaks", text) == 0.0 and is_true(subject, text) == 2.0 for subject, text in one.other)
    with pytest.raises(ValueError, match="Unknown topic 'works_as'"):
        topic("works_as", seed=0)


def test_a_comparison_pairs_its_problems(gpt2) -> None:
    _, _, problem = planted()
    methods = {name: STEERING[name] for name in ("difference of means", "random vector")}
    result = compare_steering(
        gpt2, {0: [problem], 1: [problem]}, methods, layers=[1], factors=[1.0, 4.0], progress=False
    )
    assert [(run.method, run.seed) for run in result.runs] == [
        (name, seed) for seed in (0, 1) for name in ("base, not steered", *methods)
    ]
    assert result.reference == "difference of means"
    assert result.n_candidates == 2
    # No seed enters a difference of means; a random vector is another one.
    first, second = result.of("difference of means")
    assert first.test == second.test
    with pytest.raises(ValueError, match="the same test prompts"):
        compare_steering(
            gpt2, {0: [problem], 1: [replace(problem, test=["By the"])]}, methods, layers=[1], progress=False
        )
    with pytest.raises(ValueError, match="factors above 0"):
        compare_steering(gpt2, {0: [problem]}, methods, layers=[1], factors=[0.0], progress=False)


def test_a_trained_edit_learns_the_wanted_texts_and_steers(gpt2) -> None:
    _, _, problem = planted()
    method = STEERING["LoReFT of rank 4"]
    assert isinstance(method, TrainedEdit)
    method = replace(method, config=replace(method.config, epochs=15, lr=3e-2))
    reft = method.found(gpt2, problem, 1, seed=0)
    assert steered(gpt2, reft, problem, problem.test).concept == (2.0, 2.0)
    assert steered(gpt2, None, problem, problem.test).concept == (0.0, 0.0)


@pytest.mark.slow
def test_on_the_shipped_model_the_truth_is_ordered_and_the_controls_fail() -> None:
    from reftlens.paper.claims.steering import SteeringConfig, steering

    names = ("difference of means", "LoReFT of rank 4", "shuffled texts", "random vector")
    config = SteeringConfig(topics=("speaks",), seeds=(0,), methods=names, layers=(3, 4), factors=(0.5, 1.0))
    found = steering(rl.load_bridge("facts-small"), config, model="facts-small", progress=False).compared
    scores = found.to_dataframe().set_index("method")
    assert scores.overall["LoReFT of rank 4"] > 1.5
    assert scores.overall["difference of means"] > 1.0
    assert max(scores.overall[["shuffled texts", "random vector"]]) < 0.5
    assert scores.overall["base, not steered"] < 0.2
