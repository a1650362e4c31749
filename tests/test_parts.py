"""A split LoReFT: parts that are trained apart stay apart, and act together or alone."""

from __future__ import annotations

import pytest
import torch
from conftest import COMPLETIONS, PROMPTS
from einops import einsum
from test_orthonormal import distance_from_orthonormal, fit

import reftlens as rl

D = 32
PARTS = {"german": 4, "french": 4}


def split(d_model=D, parts=PARTS) -> rl.SplitLoReFT:
    return rl.SplitLoReFT(d_model, dict(parts))


def numbers(edit, part) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in edit.named_parameters() if f"part_{part}." in name}


def rows(edit) -> torch.Tensor:
    return torch.cat([edit.rotations[f"part_{name}"].weight.detach() for name in edit.parts])


def test_all_parts_are_one_loreft_of_the_whole_rank() -> None:
    edit, whole, h = split(), rl.LoReFT(D, 8), torch.randn(6, D)
    with torch.no_grad():
        whole.rotation.weight.copy_(rows(edit))
        whole.source.weight.copy_(torch.cat([edit.sources[f"part_{name}"].weight for name in PARTS]))
        whole.source.bias.copy_(torch.cat([edit.sources[f"part_{name}"].bias for name in PARTS]))
    torch.testing.assert_close(edit(h), whole(h))
    assert edit.n_parameters() == whole.n_parameters()


def test_parts_add_up_and_each_fixes_what_it_wrote() -> None:
    edit, h = split().double(), torch.randn(6, D, dtype=torch.float64)
    alone = {}
    for name in PARTS:
        with edit.only(name) as narrowed:
            assert narrowed.active == (name,)
            alone[name] = edit.delta(h)
            assert len(edit.basis()) == 4
    assert edit.active == tuple(PARTS)
    torch.testing.assert_close(edit.delta(h), alone["german"] + alone["french"])
    for name in PARTS:
        R, source = edit.rotations[f"part_{name}"].weight, edit.sources[f"part_{name}"]
        wanted = einsum(source.weight, h, "r d, n d -> n r") + source.bias
        torch.testing.assert_close(einsum(R, edit(h), "r d, n d -> n r"), wanted)
        with edit.only(*(set(PARTS) - {name})):
            assert not torch.allclose(einsum(R, edit(h), "r d, n d -> n r"), wanted), "the other part alone is not it"


@pytest.mark.parametrize("trained", ["german", "french"])
@pytest.mark.parametrize("fused", [False, True])
def test_training_one_part_leaves_the_other_to_the_bit(trained, fused) -> None:
    torch.manual_seed(0)
    edit, h = split(), torch.randn(6, D)
    (other,) = set(PARTS) - {trained}
    mine, theirs = numbers(edit, trained), numbers(edit, other)
    with edit.only(other):
        before = edit.delta(h).detach()
    with edit.only(trained):
        fit(edit, steps=300, lr=9e-3, weight_decay=0.1, fused=fused)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in numbers(edit, other).items())
    assert all(not torch.allclose(tensor, mine[name], atol=1e-2) for name, tensor in numbers(edit, trained).items())
    assert distance_from_orthonormal(rows(edit)) <= 1e-6
    with edit.only(other):
        assert torch.equal(edit.delta(h), before)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in numbers(edit, other).items())


def test_training_all_parts_moves_all_and_keeps_them_orthonormal() -> None:
    torch.manual_seed(0)
    edit = split()
    before = {name: numbers(edit, name) for name in PARTS}
    fit(edit, steps=300, lr=9e-3, weight_decay=0.1)
    edit(torch.randn(1, D))
    assert distance_from_orthonormal(rows(edit)) <= 1e-6
    for part in PARTS:
        assert all(not torch.equal(tensor, before[part][name]) for name, tensor in numbers(edit, part).items())


def test_parts_trained_apart_do_both_tasks_together() -> None:
    """Two planted tasks, each a target inside its own 4 directions; trained in turns, used as one."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(D, 8)).Q.T
    h, task = torch.randn(64, D), {"german": basis[:4], "french": basis[4:]}
    goal = {name: torch.randn(4) for name in PARTS}

    def error(name, hidden) -> float:
        return float((hidden @ task[name].T - goal[name]).square().mean().detach())

    edit = split()
    untrained = {name: error(name, edit(h)) for name in PARTS}
    for name in list(PARTS) * 3:
        with edit.only(name):
            optimiser = torch.optim.Adam(edit.parameters(), lr=2e-2)
            for _ in range(200):
                optimiser.zero_grad()
                aim = h + (goal[name] - h @ task[name].T) @ task[name]
                (edit(h) - aim).square().mean().backward()
                optimiser.step()
    for name in PARTS:
        assert error(name, edit(h)) < 0.02 * untrained[name]
        (other,) = set(PARTS) - {name}
        with edit.only(other):
            assert error(name, edit(h)) > 0.5 * untrained[name], "one part does not do the other's task"


def test_a_part_is_trained_on_a_model_and_reloaded(tmp_path, gpt2) -> None:
    torch.manual_seed(0)
    reft = rl.Reft([(rl.Site("blocks.1.hook_resid_post", rl.All()), split())])
    ((_, edit),) = reft
    french, batch = numbers(edit, "french"), rl.encode(gpt2, PROMPTS)
    options = rl.TrainConfig(epochs=5, lr=1e-2, weight_decay=0.1, progress=False)
    with edit.only("german"):
        log = rl.train(gpt2, reft, list(zip(PROMPTS, COMPLETIONS, strict=True)), options)
    assert log.loss[-1] < log.loss[0]
    assert all(torch.equal(tensor, french[name]) for name, tensor in numbers(edit, "french").items())
    reft.save_pretrained(tmp_path / "edit", bridge=gpt2)
    again = rl.Reft.from_pretrained(tmp_path / "edit", bridge=gpt2)
    ((_, loaded),) = again
    for old, new in ((edit.only("german"), loaded.only("german")), (edit.only(*PARTS), loaded.only(*PARTS))):
        with old, new:
            one, two = (
                gpt2.run_with_hooks(batch.tokens, fwd_hooks=r.fwd_hooks(batch.prompt_mask)) for r in (reft, again)
            )
        assert torch.equal(one, two)


def test_what_is_saved_inside_training_is_orthonormal_together() -> None:
    torch.manual_seed(0)
    edit = split()
    french = numbers(edit, "french")
    with edit.only("german"):
        fit(edit, steps=3, lr=5e-2)
        assert distance_from_orthonormal(rows(edit)) > 1e-3
        saved = {name: tensor.clone() for name, tensor in edit.state_dict().items()}
    again = split()
    again.load_state_dict(saved)
    assert distance_from_orthonormal(rows(again)) <= 1e-6
    again(torch.randn(1, D))
    assert all(torch.equal(tensor, french[name]) for name, tensor in numbers(again, "french").items())


def test_only_is_undone_after_an_error_and_nests() -> None:
    edit = split(parts={"a": 2, "b": 3, "keys": 1})
    with pytest.raises(RuntimeError, match="stop"), edit.only("a", "keys"):
        with edit.only("b"):
            assert edit.active == ("b",)
        assert edit.active == ("a", "keys")
        raise RuntimeError("stop")
    assert edit.active == ("a", "b", "keys")


def test_impossible_parts_are_refused() -> None:
    for parts, message in [
        ({}, "at least one part"),
        ({"a": 0}, "at least 1, got 0 for 'a'"),
        ({"a.b": 1}, "must be a Python identifier"),
        ({"a": 20, "b": 13}, r"rank must be in \[1, 32\].*got 33"),
    ]:
        with pytest.raises(ValueError, match=message):
            split(parts=parts)
    with pytest.raises(ValueError, match=r"Unknown part 'dutch'. Choose from: german, french"), split().only("dutch"):
        pass
    with pytest.raises(ValueError, match=r"only\(\) needs at least one part"), split().only():
        pass
