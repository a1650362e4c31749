"""What the trainer does otherwise than `transformers.Trainer`: what decays, what stops it, in what precision it runs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from conftest import COMPLETIONS, PROMPTS, make_bridge, make_edit
from transformers.trainer_utils import sort_checkpoints

import reftlens as rl
from reftlens.cone.store import InMemory
from reftlens.training.base_runs import BaseRuns
from reftlens.training.lofit import scale_heads
from reftlens.training.objectives import Classification, Completion, RePS
from reftlens.training.trainer import EditLoss

EXAMPLES = [*zip(PROMPTS, COMPLETIONS, strict=True), ("tower of the city , old", " river")]
CONFIG = rl.TrainConfig(epochs=3, batch_size=2, lr=5e-3, progress=False)


def fresh(bridge, layers=(0, 1), kind=rl.LoReFT):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return rl.Reft.at_layers(bridge, layers=layers, positions="l1", intervention=kind, rank=2)


def values(reft):
    return [parameter.detach().clone() for parameter in reft.parameters()]


class Breaks:
    """Makes the backward pass of a parameter give NaN from its n-th time on."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, gradient):
        self.n -= 1
        return gradient if self.n > 0 else gradient * math.nan


def test_a_gradient_that_is_not_finite_names_step_and_site_and_is_not_used(gpt2, tmp_path) -> None:
    whole = fresh(gpt2)
    rl.train(gpt2, whole, EXAMPLES, replace(CONFIG, save_every=1, output_dir=tmp_path / "whole", keep_checkpoints=9))
    reft = fresh(gpt2)
    (_, first), _ = reft
    first.source.weight.register_hook(Breaks(4))
    message = r"gradient is not finite at step 4; the backward pass first shows it at blocks\.0\.hook_resid_post.*run/checkpoint-3"
    with pytest.raises(FloatingPointError, match=message):
        rl.train(gpt2, reft, EXAMPLES, replace(CONFIG, save_every=1, output_dir=tmp_path / "run"))
    after_three = rl.Reft.from_pretrained(tmp_path / "whole" / "checkpoint-3" / "edit", bridge=gpt2)
    assert all(torch.equal(a, b) for a, b in zip(values(reft), values(after_three), strict=True))
    kept = rl.Reft.from_pretrained(sort_checkpoints(str(tmp_path / "run"))[-1] + "/edit", bridge=gpt2)
    assert all(torch.equal(a, b) for a, b in zip(values(kept), values(reft), strict=True))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("what", ["source", "rotation"])
def test_a_loss_that_is_not_finite_names_step_and_site(gpt2, layer, what) -> None:
    reft = fresh(gpt2)
    _, intervention = list(reft)[layer]
    with torch.no_grad():
        (intervention.source if what == "source" else intervention.rotation).weight[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match=rf"step 1.*activation is at blocks\.{layer}\.hook_resid_post: lower"):
        rl.train(gpt2, reft, EXAMPLES, CONFIG)


def test_a_rate_that_is_far_too_high_names_step_and_site_and_saves_nothing(gpt2, tmp_path) -> None:
    with pytest.raises(FloatingPointError, match=r"edit at blocks\.0\.hook_resid_post is not finite after step 1"):
        rl.train(gpt2, fresh(gpt2), EXAMPLES, replace(CONFIG, lr=1e38, save_every=1, output_dir=tmp_path / "run"))
    assert not sort_checkpoints(str(tmp_path / "run"))
    with pytest.raises(FloatingPointError, match=r"step 2.*activation is at blocks\.0\.hook_resid_post"):
        rl.train(gpt2, fresh(gpt2), EXAMPLES, replace(CONFIG, lr=1e38))


def test_a_broken_base_is_called_one(gpt2) -> None:
    with torch.no_grad():
        gpt2.original_model.transformer.ln_f.original_component.weight[0] = math.nan
    with pytest.raises(FloatingPointError, match="activation is at the base model itself"):
        rl.train(gpt2, fresh(gpt2), EXAMPLES, CONFIG)


def test_matrices_decay_and_neither_biases_nor_r_do(gpt2) -> None:
    """Against AdamW by hand, with a decay so strong that it shows."""
    config = replace(CONFIG, epochs=4, batch_size=4, weight_decay=0.5, lr=2e-2, schedule="constant", max_grad_norm=1e9)
    reft, twin = fresh(gpt2), fresh(gpt2)
    rl.train(gpt2, reft, EXAMPLES, config)
    decayed = [i.source.weight for _, i in twin]
    others = [p for _, i in twin for p in (i.source.bias, i.rotation.weight)]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.5}, {"params": others, "weight_decay": 0.0}], lr=2e-2
    )
    batch = rl.encode(gpt2, *map(list, zip(*EXAMPLES, strict=True)))
    for _ in range(4):
        optimiser.zero_grad()
        with twin.hooks(gpt2, batch):
            logits = gpt2(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
        rl.objectives.completion_loss(logits, batch.labels).backward()
        optimiser.step()
    for (_, ours), (_, theirs) in zip(reft, twin, strict=True):
        torch.testing.assert_close(ours.source.weight, theirs.source.weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.R, theirs.R, rtol=1e-4, atol=1e-5)
    plain = fresh(gpt2)
    rl.train(gpt2, plain, EXAMPLES, replace(config, weight_decay=0.0))
    (_, without), _ = plain
    (_, with_decay), _ = reft
    assert float((without.source.weight - with_decay.source.weight).detach().norm()) > 0.01


@pytest.mark.slow
def test_autocast_trains_a_float32_base_in_bfloat16(gpt2, tmp_path) -> None:
    """Close to float32, not equal to it; and base runs made under autocast are not those made without."""
    config = replace(CONFIG, epochs=20, batch_size=4)
    exact, rough = fresh(gpt2), fresh(gpt2)
    full, half = (
        rl.train(gpt2, reft, EXAMPLES, replace(config, precision=precision, hold_dir=tmp_path / precision))
        for reft, precision in ((exact, "float32"), (rough, "bfloat16"))
    )
    assert half.loss != full.loss
    assert half.loss == pytest.approx(full.loss, rel=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in rough.parameters())
    with pytest.raises(ValueError, match="different: precision"):
        rl.train(gpt2, rough, EXAMPLES, replace(config, precision="bfloat16", hold_dir=tmp_path / "float32"))


def test_a_base_in_bfloat16_trains_a_float32_edit() -> None:
    bridge = make_bridge("llama", dtype=torch.bfloat16)
    reft = fresh(bridge)
    log = rl.train(bridge, reft, EXAMPLES, replace(CONFIG, epochs=10, batch_size=4))
    assert log.loss[-1] < log.loss[0]
    assert all(parameter.dtype == torch.float32 for parameter in reft.parameters())


def test_a_head_is_trained_and_saved_with_the_edit(gpt2, tmp_path) -> None:
    texts = [("The old tower", 0), ("the weaver who", 1)]
    objective = Classification(gpt2, 2)
    config = replace(CONFIG, output_dir=tmp_path / "run")
    rl.train(gpt2, fresh(gpt2), texts, config, objective=objective)
    again = Classification(gpt2, 2)
    rl.train(gpt2, fresh(gpt2), texts, replace(config, resume=True), objective=again)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), objective.parameters(), strict=True))


@pytest.mark.parametrize("objective", [Completion(), RePS(None), RePS(-0.5)], ids=["Completion", "RePS", "both ways"])
def test_the_l1_term_is_added_to_each_loss_by_its_weight(gpt2, objective) -> None:
    """Against the formulas of LoFiT and ReFT-r1 on what plain hooks recorded, gradients too."""
    detector = make_edit(rl.ReFTr1)
    (site, scales), *_ = scale_heads(gpt2, positions=rl.All(), layers=[1])
    torch.nn.init.normal_(scales.excess)
    reft = rl.Reft([(rl.Site("blocks.0.hook_resid_post", rl.All()), detector), (site, scales)])
    examples = EXAMPLES if isinstance(objective, Completion) else [(*pair, " tower who") for pair in EXAMPLES]
    runs = BaseRuns(gpt2, reft, objective, objective.read(examples), store=InMemory(2**24))
    rows = torch.arange(len(examples))
    found, plain = (EditLoss(runs, dropout=0.0, l1=l1).train()(rows) for l1 in (0.3, 0.0))
    assert torch.equal(EditLoss(runs, dropout=0.0, l1=0.3).eval()(rows), plain)
    by_hand = []
    for example, loss in zip(examples, plain, strict=True):
        batch = objective.encode(gpt2, example)
        _, cache = gpt2.run_with_cache(batch.tokens[:1])
        scores = (cache["blocks.0.hook_resid_post"][0][batch.prompt_mask[0]] @ detector.v).relu()
        rest = (scores.sum() - scores.topk(2).values.sum()) / len(scores)
        weight = int(objective.weights(batch)[0])
        by_hand.append(loss + 0.3 * weight * (rest + scales.excess.abs().sum()))
    torch.testing.assert_close(found, torch.stack(by_hand))
    gradients = [torch.autograd.grad(losses.sum(), list(reft.parameters())) for losses in (found, torch.stack(by_hand))]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_l1_wants_edits_that_have_such_a_term(gpt2) -> None:
    with pytest.raises(ValueError, match="LoReFT has no L1 term: leave l1 at 0"):
        rl.train(gpt2, fresh(gpt2), EXAMPLES, replace(CONFIG, l1=0.1))


def test_dropout_is_of_training_steps_alone(gpt2) -> None:
    reft = fresh(gpt2)
    runs = BaseRuns(gpt2, reft, Completion(), EXAMPLES, store=InMemory(2**24))
    rows = torch.arange(len(EXAMPLES))
    plain = EditLoss(runs, dropout=0.0, l1=0.0)(rows)
    module = EditLoss(runs, dropout=0.3, l1=0.0)
    torch.manual_seed(0)
    first, second = module(rows), module(rows)
    torch.manual_seed(0)
    assert torch.equal(module(rows), first)
    assert not torch.allclose(first, second)
    assert torch.equal(module.eval()(rows), plain)
    log = rl.train(gpt2, reft, EXAMPLES, replace(CONFIG, epochs=1, lr=1e-9, dropout=0.3), validation=EXAMPLES)
    ((_, validation),) = log.validation
    weights = Completion().weights(rl.encode(gpt2, *map(list, zip(*EXAMPLES, strict=True))))
    assert validation == pytest.approx(float((plain.sum() / weights.sum()).detach()), rel=1e-4)
    assert abs(log.loss[0] - validation) > 1e-3
