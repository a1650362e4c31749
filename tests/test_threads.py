"""Two threads and one bridge: each gets the right numbers or a clear error, and never the other's edit."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import PROMPTS, make_bridge

import reftlens as rl
from reftlens.bridge import EditError, hooked, in_this_thread, one_thread
from reftlens.cone.hold import hold, run_cone
from reftlens.cone.recording import record

REFUSED = "a bridge runs one edit at a time"


def edits(bridge, layer=1, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        reft = rl.Reft.at_layers(bridge, layers=[layer], positions="l1", rank=2)
        with torch.no_grad():
            for parameter in reft.parameters():
                if parameter.ndim == 1:
                    parameter.add_(1.0)
        return reft


def elsewhere(function, *args):
    """The result of a call in another thread, or its error."""
    with ThreadPoolExecutor(1, thread_name_prefix="worker") as pool:
        return pool.submit(function, *args).result()


def whole(bridge, reft, batch):
    with reft.hooks(bridge, batch), torch.no_grad():
        return bridge(batch.tokens, attention_mask=batch.attention_mask)


@pytest.fixture
def batch(gpt2):
    return rl.encode(gpt2, PROMPTS)


def base(bridge, batch):
    with torch.no_grad():
        return bridge(batch.tokens, attention_mask=batch.attention_mask)


WAYS = {
    "an edit": lambda bridge, batch: whole(bridge, edits(bridge, 2), batch),
    "generate": lambda bridge, batch: rl.generate(bridge, None, PROMPTS[:1], max_new_tokens=2),
    "train": lambda bridge, batch: rl.train(
        bridge, edits(bridge), [(PROMPTS[0], " river")], rl.TrainConfig(epochs=1, progress=False)
    ),
    "a recording": record,
    "a cone": lambda bridge, batch: run_cone(bridge, hold(bridge, batch, edits(bridge).edits(batch)), []),
    "hooks of an analysis": lambda bridge, batch: hooked(bridge, []).__enter__(),
    "a base run": base,
    "hooks by hand": lambda bridge, batch: bridge.run_with_hooks(
        batch.tokens, fwd_hooks=edits(bridge, 2).fwd_hooks(batch)
    ),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("way", WAYS)
def test_a_second_thread_is_refused_while_an_edit_is_attached(gpt2, batch, way) -> None:
    reft = edits(gpt2)
    right, bare = whole(gpt2, reft, batch), base(gpt2, batch)
    with reft.hooks(gpt2, batch), torch.no_grad():
        with pytest.raises(EditError, match=REFUSED):
            elsewhere(WAYS[way], gpt2, batch)
        assert torch.equal(gpt2(batch.tokens, attention_mask=batch.attention_mask), right)
    assert torch.equal(base(gpt2, batch), bare)
    assert torch.equal(elsewhere(base, gpt2, batch), bare), "afterwards the model is free"
    elsewhere(WAYS[way], gpt2, batch)


def test_hooks_made_by_one_thread_refuse_to_run_in_another(gpt2, batch) -> None:
    hooks = edits(gpt2).fwd_hooks(batch)
    gpt2.run_with_hooks(batch.tokens, fwd_hooks=hooks)
    with pytest.raises(EditError, match="'worker_0' runs a model to which thread 'MainThread' has attached"):
        elsewhere(lambda: gpt2.run_with_hooks(batch.tokens, fwd_hooks=hooks))


def test_one_thread_may_nest_and_take_turns(gpt2, batch) -> None:
    first, second = edits(gpt2, 0), edits(gpt2, 2, seed=1)
    both = whole(gpt2, rl.Reft.compose({"first": first, "second": second}), batch)
    with torch.no_grad(), first.hooks(gpt2, batch), second.hooks(gpt2, batch), one_thread(gpt2):
        assert torch.equal(gpt2(batch.tokens, attention_mask=batch.attention_mask), both)

    def steps():
        with first.hooks(gpt2, batch):
            yield base(gpt2, batch)

    given = steps()
    logits = next(given)
    given.close()
    assert torch.equal(logits, whole(gpt2, first, batch))
    with pytest.raises(KeyError), first.hooks(gpt2, batch):
        raise KeyError
    assert torch.equal(elsewhere(whole, gpt2, second, batch), whole(gpt2, second, batch))


def test_two_bridges_do_not_know_of_each_other(gpt2, batch) -> None:
    other = make_bridge("gpt2", seed=1)
    right = whole(other, edits(other), batch)
    with edits(gpt2).hooks(gpt2, batch):
        assert torch.equal(elsewhere(lambda: whole(other, edits(other), batch)), right)
        base(gpt2, batch)


def test_threads_that_hook_at_random_get_right_numbers_or_an_error(gpt2, batch) -> None:
    """Eight threads, each with its own edit, all at once: what is not refused is right to the bit."""
    refts = [edits(gpt2, seed % 3, seed) for seed in range(4)]
    right = [whole(gpt2, reft, batch) for reft in refts] + [base(gpt2, batch)]
    assert not any(torch.equal(right[a], right[b]) for a in range(5) for b in range(a)), "nothing could be told apart"
    ready = threading.Barrier(8)

    def one(index):
        ready.wait()
        outcomes = []
        for _ in range(5):
            try:
                logits = base(gpt2, batch) if index % 5 == 4 else whole(gpt2, refts[index % 5], batch)
                outcomes.append(torch.equal(logits, right[index % 5]))
            except EditError as error:
                outcomes.append(None if REFUSED in str(error) else False)
        return outcomes

    with ThreadPoolExecutor(8) as pool:
        outcomes = [outcome for each in pool.map(one, range(8)) for outcome in each]
    assert False not in outcomes
    assert outcomes.count(True) >= 1
    assert torch.equal(base(gpt2, batch), right[4])


def test_a_checkpointed_block_may_run_again_in_a_thread_of_torch() -> None:
    """On a GPU, autograd recomputes in threads of its own; the guard lets calls pass while gradients are taken."""
    guarded = in_this_thread(lambda: 3)
    seen = []

    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, given):
            return given * 1

        @staticmethod
        def backward(ctx, grad):
            seen.append(guarded())
            return grad

    given = torch.zeros(1, requires_grad=True)
    output = Again.apply(given)
    elsewhere(output.backward)
    assert seen == [3]
    with pytest.raises(EditError, match=REFUSED):
        elsewhere(guarded)
