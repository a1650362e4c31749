"""What a person tries first works, and what only looks right is refused with the call that is right.

`test_arguments.py` runs this file without the check of annotations that the other tests run under: users have none.
"""

from __future__ import annotations

import inspect
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import PROMPTS, make_hf

import reftlens as rl
from reftlens.training.train import _require_finite

POST = "blocks.1.hook_resid_post"


def weights(reft: rl.Reft) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in reft.parameters()]


# Masks.


def test_token_ids_are_not_a_mask(gpt2, make_reft) -> None:
    """A reflex of TransformerLens users: the ids were taken as a mask in silence, and edited every token."""
    reft, tokens = make_reft(), gpt2.to_tokens(PROMPTS[0])
    for use in (reft.fwd_hooks, reft.edits, lambda ids: reft.hooks(gpt2, ids)):
        with pytest.raises(TypeError, match=r"got int64 \[1, \d+\], perhaps token ids: pass the batch of rl\.encode"):
            reft.edits(tokens) if use == reft.fwd_hooks else use(tokens)
    batch = rl.encode(gpt2, PROMPTS[:1])
    for wrong in (batch.prompt_mask.float(), batch.prompt_mask.long(), batch.prompt_mask.numpy(), PROMPTS[0], None):
        with pytest.raises(TypeError, match=r"batch of rl\.encode"):
            reft.edits(wrong)
    with pytest.raises(ValueError, match=r"must be \[batch, pos\], got \[\d+\]"):
        reft.edits(batch.prompt_mask[0])
    assert len(reft.fwd_hooks(batch.prompt_mask)) == 1


# Layers, classes, positions.


@pytest.mark.parametrize("layers", [1, [1], (1,), range(1, 2), iter([1]), np.array([1]), np.int64(1), -2])
def test_layers_as_people_write_them(gpt2, layers) -> None:
    reft = rl.Reft.at_layers(gpt2, layers=layers, positions="last", rank=2)
    assert [site.hook_name for site in reft.sites] == [POST]


@pytest.mark.parametrize("layers", ["1", b"1", [], True, [True], [1.0], None, {"a": 1}, 3, [-4]])
def test_layers_that_are_refused(gpt2, layers) -> None:
    with pytest.raises((TypeError, ValueError), match="layer"):
        rl.Reft.at_layers(gpt2, layers=layers, positions="last", rank=2)


def test_classes_by_name(gpt2) -> None:
    for name in ("LoReFT", "loreft", rl.LoReFT):
        reft = rl.Reft.at_layers(gpt2, layers=1, positions="all", intervention=name, rank=2)
        assert type(reft[0][1]) is rl.LoReFT
    for wrong in ("LoRA", int, None, rl.LoReFT(32, 2)):
        with pytest.raises(ValueError, match=r"one of LoReFT, .*got "):
            rl.Reft.at_layers(gpt2, layers=1, positions="all", intervention=wrong, rank=2)


def test_positions_by_word_and_number() -> None:
    assert rl.parse("all") == rl.All()
    assert rl.parse("last") == rl.Last(1)
    assert rl.parse("first") == rl.First(1)
    assert rl.parse(-1) == rl.At(-1)
    assert rl.Site(POST, "all").positions == rl.All()
    with pytest.raises(ValueError, match="'all', 'first' or 'last'"):
        rl.parse("every")
    with pytest.raises(TypeError):
        rl.parse(True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: rl.First(2, half="x"),
        lambda: rl.Last(2, half=1),
        lambda: rl.First(2**70),
        lambda: rl.At(-(2**70)),
        lambda: rl.Span(3),
        lambda: rl.Span(""),
        lambda: rl.Span("a", occurrence="first"),
        lambda: rl.Span("a", occurrence=True),
        lambda: rl.AnySpan((1, 2)),
        lambda: rl.AnySpan("ab"),
        lambda: rl.AnySpan(3),
        lambda: rl.LastOf("l1"),
        lambda: rl.All() | "f1",
        lambda: rl.All() - 3,
    ],
)
def test_rules_that_could_not_be_loaded_are_not_made(make) -> None:
    with pytest.raises((TypeError, ValueError)):
        make()


def test_a_pair_by_its_number(gpt2) -> None:
    reft = rl.Reft.at_layers(gpt2, layers="all", positions="last", rank=2)
    site, intervention = reft[-1]
    assert site == reft.sites[-1]
    assert intervention is list(reft)[-1][1]
    with pytest.raises(IndexError, match="pair 3 does not exist: this edit has 3 pairs"):
        _ = reft[3]
    with pytest.raises(TypeError, match="only\\(name\\)"):
        _ = reft["edit"]


def test_a_seed_draws_the_first_weights_and_nothing_else(gpt2) -> None:
    before = torch.random.get_rng_state()
    one, same, other = (rl.Reft.at_layers(gpt2, layers=[0, 1], positions="l1", rank=2, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(same), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


# Models.


def test_a_hugging_face_model_is_no_bridge(gpt2, make_reft) -> None:
    model, reft = make_hf("gpt2"), make_reft()
    batch = rl.encode(gpt2, PROMPTS)
    uses = (
        lambda: rl.Reft.at_layers(model, layers=1, positions="last", rank=2),
        lambda: rl.train(model, reft, [("a", " b")]),
        lambda: rl.attach(model, reft.edits(batch)).__enter__(),
    )
    for use in uses:
        with pytest.raises(TypeError, match=r"got GPT2LMHeadModel: make one with rl\.load_bridge\(hf_model=model"):
            use()


# Settings.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_grad_norm", -1),
        ("max_grad_norm", 0),
        ("max_grad_norm", float("nan")),
        ("lr", float("inf")),
        ("lr", "1e-3"),
        ("lr", True),
        ("weight_decay", float("inf")),
        ("weight_decay", float("nan")),
        ("l1", -0.1),
        ("epochs", 2.5),
        ("epochs", True),
        ("batch_size", "8"),
        ("save_every", 0),
        ("seed", -1),
        ("seed", 1.5),
        ("hold_bytes", float("inf")),
        ("schedule", "linnear"),
        ("warmup_ratio", float("nan")),
        ("dropout", 1),
        ("resume", "yes"),
    ],
)
def test_settings_that_only_look_valid(name, value) -> None:
    with pytest.raises(ValueError, match=f"{name} must (not )?be"):
        rl.TrainConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", float("inf")), ("max_new_tokens", 2.5), ("num_beams", True), ("repetition_penalty", float("nan"))],
)
def test_decoding_that_only_looks_valid(name, value) -> None:
    with pytest.raises(ValueError, match=f"{name}.* must be"):
        rl.Decoding(**{name: value})


def test_a_last_update_that_is_not_finite_raises(gpt2, make_reft) -> None:
    reft, objective = make_reft(), rl.objectives.Completion()
    _require_finite(reft, objective)
    with torch.no_grad():
        next(iter(reft.parameters())).view(-1)[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"the edit at blocks\.1\.hook_resid_post with NaN"):
        _require_finite(reft, objective)


# Plots.


def test_plots_take_one_result_or_several(gpt2, make_reft) -> None:
    (operator,) = rl.analysis.decompose(gpt2, make_reft(positions=rl.All()), [rl.encode(gpt2, PROMPTS)])
    one, several = rl.plot.png(rl.plot.spectrum(operator)), rl.plot.png(rl.plot.spectrum([operator]))
    assert one == several
    assert rl.plot.spectrum(replace(operator) for _ in range(2))
    with pytest.raises(TypeError, match="draws one Operator or a list of them, got str"):
        rl.plot.spectrum("operator")
    with pytest.raises(ValueError, match="at least one Operator"):
        rl.plot.spectrum([])


NAN = float("nan")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda given: given.reft.scaled(NAN), "the scale of 'edit' must be a finite number, got nan"),
        (lambda given: given.reft.scaled({"edit": "2"}), "the scale of 'edit' must be a finite number, got '2'"),
        (lambda given: rl.Reft(list(given.reft), scales={"edit": NAN}), "the scale of 'edit' must be"),
        (lambda given: replace(given.edit, scale=NAN), "scale must be a finite number, got nan"),
        (lambda given: replace(given.edit, dropout=NAN), "dropout must be a finite number, got nan"),
        (lambda given: replace(given.edit, dropout=1), r"dropout must be in \[0, 1\), got 1"),
        (lambda given: rl.DissectConfig(seed=NAN), "a seed must be an integer of at least 0, got nan"),
        (lambda given: rl.DissectConfig(seeds=(1, -1)), "a seed must be at least 0, got -1"),
        (lambda given: rl.ReFTr1(32, k=NAN), "k must be an integer"),
        (lambda given: rl.SteeringVector(32, True), "scale must be a finite number, got True"),
        (lambda given: rl.objectives.DPO(float("inf")), "beta must be a finite number"),
        (lambda given: rl.objectives.RePS(NAN), "suppress must be a finite number"),
        (lambda given: rl.objectives.Classification(given.bridge, 2.5), "n_classes must be an integer"),
        (lambda given: rl.baselines.LoRA(rank=0), "rank must be at least 1, got 0"),
        (lambda given: rl.baselines.LoRA(alpha=NAN), "alpha must be a finite number"),
        (lambda given: rl.baselines.PrefixTuning(length=-1), "length must be at least 1"),
        (lambda given: rl.baselines.BitFit(lr=-1), "lr must be above 0, got -1"),
        (lambda given: rl.baselines.EditAt(rank="2"), "rank must be an integer"),
        (lambda given: rl.analysis.haar(NAN), "d_model must be an integer"),
        (lambda given: rl.analysis.turned(given.reft, seed=2**70), r"seed must be smaller than 2\*\*63 in absolute value"),
        (lambda given: rl.analysis.read_space(given.bridge, POST, given.batch, tolerance=NAN), "tolerance must be a finite"),
        (lambda given: rl.analysis.ablate(given.bridge, given.reft, given.batch, None, n_orders=NAN), "n_orders must be"),
        (lambda given: rl.analysis.ablate(given.bridge, given.reft, given.batch, None, memory_bytes=0), "memory_bytes must be"),
        (lambda given: rl.generate(given.bridge, None, PROMPTS, batch_size=True), "batch_size must be an integer"),
    ],
)  # fmt: skip
def test_numbers_that_mean_nothing(gpt2, make_reft, make, says) -> None:
    reft, batch = make_reft(), rl.encode(gpt2, PROMPTS)
    with pytest.raises(ValueError, match=says):
        make(SimpleNamespace(bridge=gpt2, reft=reft, batch=batch, edit=reft.edits(batch)[0]))


def test_numbers_of_numpy_are_numbers(make_reft) -> None:
    reft = make_reft()
    turned = rl.analysis.turned(reft, seed=np.int64(3)), rl.analysis.turned(reft, seed=3)
    assert torch.equal(*(weights(one)[0] for one in turned))
    assert reft.scaled(np.float64(0.5)).scales == {"edit": 0.5}


# Errors from inside.


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: rl.encode(make_hf("gpt2"), ["a"]), r"rl\.encode: bridge must be TransformerBridge \(.*got GPT2LMHeadModel; make one"),
        (lambda: rl.plot.token_strip(3), r"rl\.plot\.token_strip: result must be .*TokenMap.*, got 3 \(int\)"),
        (lambda: rl.plot.token_strip([None]), r"rl\.plot\.token_strip: result must be .*TokenMap.*got list"),
        (lambda: rl.Reft.compose({"a": 3}), r"a dict with 3 \(int\) as the value of 'a'"),
        (lambda: rl.tasks.task_named(None), r"rl\.tasks\.task_named: name must be str, got None"),
        (lambda: rl.objectives.predictions(torch.ones(2)), r"got Tensor of float32 \[2\]; make one with rl\.encode"),
    ],
)  # fmt: skip
def test_an_error_from_inside_names_the_argument(call, says) -> None:
    with pytest.raises(TypeError, match=says) as caught:
        call()
    assert isinstance(caught.value.__cause__, AttributeError | TypeError)


def test_tokens_outside_the_vocabulary(gpt2, make_reft) -> None:
    batch = rl.encode(gpt2, PROMPTS)
    batch = replace(batch, tokens=batch.tokens + 10**6)
    with pytest.raises(ValueError, match=r"tokens of batch must be in the bridge's vocabulary, 0 to 319, got 10000"):
        rl.hold(gpt2, batch, make_reft().edits(batch))


def test_other_errors_go_on_as_they_are(gpt2, make_reft) -> None:
    """Those of a person's own functions, those in the body of a context, and calls without an argument that is needed."""
    batch, reft = rl.encode(gpt2, PROMPTS), make_reft()
    with pytest.raises(KeyError, match="mine"):
        rl.analysis.direct_effect(gpt2, reft, batch, lambda logits, pair: {}["mine"])
    with pytest.raises(AttributeError, match="mine"), reft.hooks(gpt2, batch):
        _ = batch.mine
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        rl.preview(gpt2, "l1")


def test_warnings_point_at_the_line_of_the_person(gpt2, make_reft, tmp_path) -> None:
    """Whatever wraps the call: one or two checks of arguments, a decorator of torch."""
    few = replace(rl.tasks.task_named("gsm8k"), max_length=8)
    long = [rl.tasks.Record("The", "The weaver speaks Tharic in the old city of Ostra .", "")]
    glued, quick = [("The tower is in", "Rome")], rl.TrainConfig(epochs=1, progress=False)
    half = rl.Reft([(rl.Site(POST, rl.Last(5, half=True)), rl.ConsReFT(32, 2))])
    calls = [
        lambda: rl.objectives.Completion().read(glued),
        lambda: rl.train(gpt2, make_reft(), glued, quick),
        lambda: torch.no_grad()(rl.objectives.Completion().read)(glued),
        lambda: few.examples(gpt2, long),
        lambda: rl.serving.save_easysteer(half, tmp_path / "edit.json"),
    ]
    for call in calls:
        with pytest.warns(UserWarning, match="completions begin|longer than 8|of fewer than 10") as caught:
            call()
        line = call.__code__.co_firstlineno
        assert {(one.filename, one.lineno) for one in caught} == {(__file__, line)}, caught[0].message


def test_public_calls_are_the_functions_and_classes_that_they_were() -> None:
    for call in (rl.train, rl.encode, rl.analysis.trace, rl.plot.dose, rl.baselines.compare, rl.tasks.task_named):
        assert pickle.loads(pickle.dumps(call)) is call
        assert inspect.signature(call) == inspect.signature(call.__wrapped__)
        assert (call.__name__, call.__doc__) == (call.__wrapped__.__name__, call.__wrapped__.__doc__)
    assert rl.train is rl.train
    assert isinstance(rl.parse("l1"), rl.Last)
    assert pickle.loads(pickle.dumps(rl.Last(2))) == rl.Last(2)
    assert list(inspect.signature(rl.Last).parameters) == ["count", "half"]
