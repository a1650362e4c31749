"""Training against a hand-written loop, what it leaves alone, and bad input."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import COMPLETIONS, PROMPTS, make_bridge
from datasets import Dataset
from transformers import TrainerCallback, set_seed
from transformers.integrations import integration_utils

import reftlens as rl
from reftlens.training.objectives import completion_loss
from reftlens.training.train import _random_state_kept

EXAMPLES = list(zip(PROMPTS, COMPLETIONS, strict=True))


def fresh(bridge, seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return rl.Reft.at_layers(bridge, layers=[1], positions="l1", rank=2)


def test_loss_is_the_mean_over_completion_tokens(bridge) -> None:
    batch = rl.encode(bridge, PROMPTS, COMPLETIONS)
    logits = bridge(batch.tokens).detach()
    by_hand = [
        -logits[row, pos - 1].log_softmax(-1)[batch.tokens[row, pos]]
        for row in range(len(batch))
        for pos in range(batch.tokens.shape[1])
        if batch.labels[row, pos] != -100
    ]
    torch.testing.assert_close(completion_loss(logits, batch.labels), torch.stack(by_hand).mean())


def test_training_equals_a_hand_written_loop(architecture) -> None:
    bridge = make_bridge(architecture)
    reft, twin = fresh(bridge), fresh(bridge)
    log = rl.train(bridge, reft, EXAMPLES, rl.TrainConfig(epochs=5, batch_size=3, lr=1e-2, progress=False))
    batch = rl.encode(bridge, PROMPTS, COMPLETIONS)
    optimiser = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.0)
    losses = []
    for step in range(5):
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / 5)
        optimiser.zero_grad()
        with twin.hooks(bridge, batch.prompt_mask):
            loss = completion_loss(bridge(batch.tokens, use_cache=False), batch.labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    np.testing.assert_allclose(log.loss, losses, rtol=1e-4)
    assert log.loss[-1] < log.loss[0]
    for ours, theirs in zip(reft.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_training_learns_and_is_repeatable(gpt2) -> None:
    config = rl.TrainConfig(epochs=30, batch_size=2, lr=3e-2, progress=False)
    one, two = fresh(gpt2), fresh(gpt2)
    log = rl.train(gpt2, one, EXAMPLES, config)
    assert rl.train(gpt2, two, Dataset.from_dict({"prompt": PROMPTS, "completion": COMPLETIONS}), config) == log
    # Three prompts share one site, so the loss settles between them; single batches vary.
    assert sum(log.loss[-6:]) / 6 < 0.75 * sum(log.loss[:2]) / 2
    assert len(log.loss) == 30 * 2
    assert "60 steps" in repr(log)


def test_training_leaves_everything_else_alone(gpt2) -> None:
    weights = {name: value.clone() for name, value in gpt2.original_model.state_dict().items()}
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(3), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    rl.train(gpt2, fresh(gpt2), EXAMPLES, rl.TrainConfig(epochs=2, progress=False))
    assert torch.equal(torch.rand(3), expected[0])
    assert np.random.rand() == expected[1]
    assert all(torch.equal(value, weights[name]) for name, value in gpt2.original_model.state_dict().items())
    assert not gpt2.training
    assert not any(parameter.requires_grad for parameter in gpt2.parameters())


def test_the_callers_random_state_is_put_back() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()
    with _random_state_kept():
        set_seed(123)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.random.get_rng_state(), before[2])


def test_accumulated_steps_are_counted(gpt2) -> None:
    config = rl.TrainConfig(epochs=2, batch_size=1, gradient_accumulation=3, progress=False)
    assert len(rl.train(gpt2, fresh(gpt2), EXAMPLES, config).loss) == 2


class Untouched(TrainerCallback):
    """Fails as soon as a trainer is made."""

    def on_init_end(self, *args, **kwargs) -> None:
        raise AssertionError("a trainer was made")


def test_an_absent_logger_is_refused_before_anything_is_computed(gpt2, monkeypatch) -> None:
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: False)
    for name, message in (("tensorbord", "tensorbord is not supported"), ("tensorboard", "pip install tensorboard")):
        with pytest.raises(ValueError, match=message):
            rl.train(gpt2, fresh(gpt2), EXAMPLES, rl.TrainConfig(report_to=name), callbacks=[Untouched()])


@pytest.mark.parametrize("named", [None, "mine"])
def test_tensorboard_events_outlive_the_training(named, gpt2, monkeypatch, tmp_path) -> None:
    """TensorBoard is not installed here: its writer is one that keeps a line for each number."""

    class Writer:
        def __init__(self, log_dir) -> None:
            Path(log_dir).mkdir(parents=True)
            self.file = Path(log_dir) / "events"

        def add_scalar(self, name, value, step) -> None:
            with self.file.open("a") as file:
                file.write(f"{name} {value}\n")

        add_text = flush = close = lambda *_, **__: None

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    if named is not None:
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", named)
    config = rl.TrainConfig(epochs=2, report_to="tensorboard", progress=False)
    log = rl.train(gpt2, fresh(gpt2), EXAMPLES, config)
    (file,) = tmp_path.rglob("events")
    assert file.relative_to(tmp_path).parts[0] == (named or "runs")
    written = [line.split() for line in file.read_text().splitlines()]
    assert [float(value) for name, value in written if name == "train/loss"] == list(log.loss)


def test_callbacks_of_transformers_take_part(gpt2) -> None:
    class StopAfter(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    log = rl.train(gpt2, fresh(gpt2), EXAMPLES, rl.TrainConfig(epochs=9, progress=False), callbacks=[StopAfter()])
    assert len(log.loss) == 3


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "no examples"),
        (Dataset.from_dict({"prompt": [], "completion": []}), "no examples"),
        (Dataset.from_dict({"text": ["a"], "label": ["b"]}), "no layout fits the fields text, label"),
        ([("a", "")], "completion of prompt 0"),
        ([("tower " * 100, " b")], "context has only 64"),
    ],
)
def test_bad_examples_are_refused_before_any_step(gpt2, examples, message) -> None:
    with pytest.raises(ValueError, match=message):
        rl.train(gpt2, fresh(gpt2), examples, rl.TrainConfig(progress=False))


@pytest.mark.parametrize(
    "settings",
    [
        *({"epochs": 0}, {"lr": 0.0}, {"lr": -1.0}, {"batch_size": 0}, {"warmup_ratio": 1.0}),
        *({"weight_decay": -0.1}, {"dropout": 1.0}, {"l1": -1.0}, {"l1": float("nan")}),
    ],
)
def test_bad_settings_are_refused(settings) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        rl.TrainConfig(**settings)


def test_a_loss_that_is_not_a_number_stops_and_names_the_step(gpt2) -> None:
    reft = fresh(gpt2)
    with torch.no_grad():
        next(iter(reft))[1].source.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="at step 1"):
        rl.train(gpt2, reft, EXAMPLES, rl.TrainConfig(epochs=1, progress=False))


def test_positions_that_no_prompt_has_are_refused_before_any_step(gpt2) -> None:
    reft = rl.Reft([(rl.Site("blocks.0.hook_resid_post", rl.All() - rl.First(60)), rl.LoReFT(32, 2))])
    with pytest.raises(ValueError, match="no prompt has"):
        rl.train(gpt2, reft, EXAMPLES, rl.TrainConfig(progress=False))
