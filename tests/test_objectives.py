"""Each objective against its formula on whole runs of the model, written out; and bad examples, refused by row."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from architectures import MASKED
from conftest import COMPLETIONS, PROMPTS, make_bridge
from datasets import Dataset

import reftlens as rl
from reftlens.cone.store import InMemory
from reftlens.training.base_runs import BaseRuns
from reftlens.training.objectives import DPO, Classification, Completion, Distillation, Regression, RePS

REJECTED = [" river", " Ostra who", " Tharic ,"]
PAIRS = list(zip(PROMPTS, COMPLETIONS, strict=True))
PREFERENCES = list(zip(PROMPTS, COMPLETIONS, REJECTED, strict=True))


def make(bridge, positions="l1", layers=(1,), *, scale=1.0):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return rl.Reft.at_layers(bridge, layers=layers, positions=positions, rank=2).scaled(scale)


def losses_of(bridge, reft, objective, examples):
    """As training computes them: on cones, on base runs made one by one."""
    read = objective.read(examples)
    runs = BaseRuns(bridge, reft, objective, read, store=InMemory(2**24))
    held, reference = runs.batch(range(len(read)))
    return objective.losses(bridge, held, reft.edits(held.batch), reference)


def whole_logprobs(bridge, reft, prompt, completion):
    """Of each completion token, from a run of the whole model over one text."""
    batch = rl.encode(bridge, [prompt], [completion])
    with nullcontext() if reft is None else reft.hooks(bridge, batch):
        logits = bridge(batch.tokens, use_cache=False)
    n = int((batch.labels != -100).sum())
    return logits[0, -n - 1 : -1].log_softmax(-1)[torch.arange(n), batch.tokens[0, -n:]], logits[0, -n - 1 : -1]


def assert_same(reft, ours, theirs) -> None:
    """Values, and the gradient of their sum."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(loss.sum(), list(reft.parameters())) for loss in (ours, theirs)]
    for mine, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-3, atol=1e-5)
        assert bool(reference.any())


def test_completion(bridge) -> None:
    reft = make(bridge)
    by_hand = torch.stack([-whole_logprobs(bridge, reft, *pair)[0].sum() for pair in PAIRS])
    assert_same(reft, losses_of(bridge, reft, Completion(), PAIRS), by_hand)


def test_dpo(bridge) -> None:
    reft, beta = make(bridge, "f1+l1", (0, 2)), 0.3

    def reward(prompt, completion):
        with torch.no_grad():
            base = whole_logprobs(bridge, None, prompt, completion)[0].sum()
        return beta * (whole_logprobs(bridge, reft, prompt, completion)[0].sum() - base)

    by_hand = torch.stack([-torch.log(torch.sigmoid(reward(p, c) - reward(p, r))) for p, c, r in PREFERENCES])
    assert_same(reft, losses_of(bridge, reft, DPO(beta), PREFERENCES), by_hand)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("suppress", [None, -1.0, -0.5])
def test_reps(bridge, suppress) -> None:
    reft = make(bridge)

    def one_way(edit, prompt, winning, losing):
        win, lose = (whole_logprobs(bridge, edit, prompt, text)[0] for text in (winning, losing))
        with torch.no_grad():
            base_win, base_lose = (whole_logprobs(bridge, None, prompt, text)[0].sum() for text in (winning, losing))
        factor = max(float(base_lose - base_win), 1.0)
        return -torch.log(torch.sigmoid(factor * win.mean() - lose.mean())), factor

    by_hand, factors = [], set()
    for prompt, chosen, rejected in PREFERENCES:
        loss, factor = one_way(reft, prompt, chosen, rejected)
        factors.add(factor)
        if suppress is not None:
            back, factor = one_way(reft.scaled(suppress), prompt, rejected, chosen)
            loss, factors = loss + back, factors | {factor}
        by_hand.append(loss)
    assert len(factors) > 1, "a factor that never leaves 1 would test half of the formula"
    assert_same(reft, losses_of(bridge, reft, RePS(suppress), PREFERENCES), torch.stack(by_hand))


@pytest.mark.parametrize("kind", ["an edit", "an edit outside of the cone", "a model"])
def test_distillation(gpt2, kind) -> None:
    reft = make(gpt2)
    with torch.random.fork_rng():
        torch.manual_seed(9)
        layer, positions = (1, "l1") if kind == "an edit" else (0, "f1")
        teacher = rl.Reft.at_layers(gpt2, layers=[layer], positions=positions, rank=2)
    if kind == "a model":
        teacher = make_bridge("gpt2", seed=4)
    model, edit = (gpt2, teacher) if isinstance(teacher, rl.Reft) else (teacher, None)
    by_hand = []
    for pair in PAIRS:
        p = whole_logprobs(model, edit, *pair)[1].detach().softmax(-1)
        q = whole_logprobs(gpt2, reft, *pair)[1].softmax(-1)
        by_hand.append((p * (p.log() - q.log())).sum())
    assert_same(reft, losses_of(gpt2, reft, Distillation(teacher), PAIRS), torch.stack(by_hand))
    itself = losses_of(gpt2, teacher, Distillation(teacher), PAIRS) if kind == "an edit" else torch.zeros(1)
    assert float(itself.detach().abs().max()) < 1e-5, "an edit is no distance from itself"


TEXTS = [("The old tower", 0), ("the weaver who lives there speaks Tharic", 1), ("by the river", 2)]


def head_by_hand(bridge, reft, objective, text):
    """W_o tanh(W_d h + b_d) + b_o of one text, from a run of the whole model."""
    batch, hidden = rl.encode(bridge, [text]), []
    handle = bridge.original_model.base_model.register_forward_hook(lambda _m, _a, output: hidden.append(output))
    with nullcontext() if reft is None else reft.hooks(bridge, batch):
        bridge(batch.tokens, attention_mask=batch.attention_mask)
    handle.remove()
    h = hidden[0].last_hidden_state[0, -1 if objective.reads_last else 0]
    dense, _, out = objective.head
    return torch.tanh(h @ dense.weight.T + dense.bias) @ out.weight.T + out.bias


@pytest.mark.sampled(1)
@pytest.mark.parametrize("architecture", ["gpt2", "llama", *MASKED])
@pytest.mark.parametrize("layers", [(1,), pytest.param((0, 1, 2), marks=pytest.mark.slow)])
def test_classification(architecture, layers) -> None:
    bridge = make_bridge(architecture)
    causal = architecture not in MASKED
    reft = make(bridge, "l1" if causal else "f1", layers)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        objective = Classification(bridge, 3)
    assert objective.reads_last == causal
    ours = losses_of(bridge, reft, objective, TEXTS)
    by_hand = [-head_by_hand(bridge, reft, objective, text).log_softmax(-1)[label] for text, label in TEXTS]
    assert_same(reft, ours, torch.stack(by_hand))
    texts, labels = zip(*TEXTS, strict=True)
    config = rl.TrainConfig(epochs=60, batch_size=3, lr=2e-2, progress=False)
    head = [parameter.detach().clone() for parameter in objective.parameters()]
    log = rl.train(bridge, reft, TEXTS, config, objective=objective)
    assert log.loss[-1] < 0.3 * log.loss[0]
    assert objective.predict(bridge, reft, list(texts), batch_size=2) == list(labels)
    assert not any(torch.equal(new, old) for new, old in zip(objective.parameters(), head, strict=True))
    base = [int(head_by_hand(bridge, None, objective, text).argmax()) for text in texts]
    assert objective.predict(bridge, None, list(texts), batch_size=2) == base


@pytest.mark.sampled(1)
@pytest.mark.parametrize("architecture", ["gpt2", "roberta"])
def test_regression(architecture) -> None:
    bridge = make_bridge(architecture)
    reft = make(bridge, "f1" if architecture in MASKED else "l1", (0, 2))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        objective = Regression(bridge)
    examples = [(text, 5.0 - 2.0 * label) for text, label in TEXTS]
    ours = losses_of(bridge, reft, objective, examples)
    by_hand = [(head_by_hand(bridge, reft, objective, text)[0] - target) ** 2 for text, target in examples]
    assert_same(reft, ours, torch.stack(by_hand))
    texts, targets = zip(*examples, strict=True)
    for edit in (reft, None):
        expected = [float(head_by_hand(bridge, edit, objective, text).detach()) for text in texts]
        assert objective.predict(bridge, edit, texts, batch_size=2) == pytest.approx(expected, abs=1e-5)
    log = rl.train(
        bridge, reft, examples, rl.TrainConfig(epochs=40, batch_size=3, lr=2e-2, progress=False), objective=objective
    )
    assert log.loss[-1] < 0.1 * log.loss[0]
    assert objective.predict(bridge, reft, texts) == pytest.approx(targets, abs=0.8)
    assert Regression(bridge).read([("a whole number is a number", 3)]) == [("a whole number is a number", 3)]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "objective", [DPO(), pytest.param(RePS(None), marks=pytest.mark.slow), RePS()], ids=["DPO", "RePS one way", "RePS"]
)
def test_preferences_are_learned(gpt2, objective) -> None:
    pairs = [(prompt, " river", " tower") for prompt in PROMPTS]
    reft = make(gpt2)
    config = rl.TrainConfig(epochs=40, batch_size=3, lr=2e-2, progress=False)
    log = rl.train(gpt2, reft, pairs, config, objective=objective)
    assert log.loss[-1] < log.loss[0]

    def preference(edit, prompt):
        chosen, rejected = (whole_logprobs(gpt2, edit, prompt, text)[0].sum() for text in (" river", " tower"))
        return float((chosen - rejected).detach())

    for prompt in PROMPTS:
        assert preference(reft, prompt) > preference(None, prompt) + 1.0, "in nats"
        if isinstance(objective, RePS) and objective.suppress is not None:
            assert preference(reft.scaled(objective.suppress), prompt) < preference(None, prompt) - 1.0


@pytest.mark.parametrize(
    ("objective", "examples", "message"),
    [
        (DPO(), PAIRS, r"example 0 must be a tuple \(prompt: str, chosen: str, rejected: str\)"),
        (DPO(), Dataset.from_dict({"prompt": ["a"], "chosen": ["b"]}), "'prompt', 'chosen' and 'rejected'"),
        (DPO(), [("The tower", " a", "")], "example 0: the completion of prompt 1"),
        (
            "classification",
            [("The tower", 1), ("The tower", 3)],
            r"example 1: label 3 of 'The tower' is not in \[0, 2\]",
        ),
        ("classification", [("The tower", True)], r"example 0 must be a tuple \(text: str, label: int\)"),
        ("regression", [("The tower", True)], r"example 0 must be a tuple \(text: str, target: float\)"),
        (
            "regression",
            [("The tower", 1.0), ("The tower", float("nan"))],
            "example 1: the target of 'The tower' must be",
        ),
        ("another vocabulary", PAIRS, "must have the same vocabulary, got 400 and 320 tokens"),
    ],
)
def test_bad_examples_are_refused_by_row(gpt2, objective, examples, message) -> None:
    if objective == "classification":
        objective = Classification(gpt2, 3)
    if objective == "regression":
        objective = Regression(gpt2)
    if objective == "another vocabulary":
        teacher = make_bridge("gpt2")
        teacher.cfg.d_vocab = 400
        objective = Distillation(teacher)
    with pytest.raises(ValueError, match=message):
        rl.train(gpt2, make(gpt2), examples, rl.TrainConfig(progress=False), objective=objective)


def test_bad_settings_are_refused(gpt2) -> None:
    for build, message in ((lambda: DPO(0.0), "beta must be above 0"), (lambda: Classification(gpt2, 1), "at least 2")):
        with pytest.raises(ValueError, match=message):
            build()
    with pytest.raises(ValueError, match="train needs a model that predicts the next token"):
        rl.train(make_bridge("bert"), make(gpt2), PAIRS, objective=DPO())
