"""The container: layouts, sharing, counts, saving and loading to the bit."""

from __future__ import annotations

import inspect
import json

import pytest
import torch
from conftest import ARCHITECTURES, COMPLETIONS, PROMPTS, make_bridge, reseal
from safetensors.torch import load_file, save_file

import reftlens as rl


def logits(bridge, reft):
    batch = rl.encode(bridge, PROMPTS)
    with reft.hooks(bridge, batch.prompt_mask):
        return bridge(batch.tokens).detach()


def test_layouts_tied_untied_and_shared(gpt2) -> None:
    tied = rl.Reft.at_layers(gpt2, layers="all", positions="f5+l5", rank=2)
    untied = rl.Reft.at_layers(gpt2, layers="all", positions="f5+l5", rank=2, tied=False)
    one = 2 * 2 * 32 + 2
    assert (len(tied), tied.n_parameters()) == (3, 3 * one)
    assert (len(untied), untied.n_parameters()) == (6, 6 * one)
    edit = rl.LoReFT(32, 2)
    shared = rl.Reft([(rl.Site(f"blocks.{layer}.hook_resid_post", "l1"), edit) for layer in range(3)])
    assert (len(shared), shared.n_parameters()) == (3, one)
    last = rl.Reft.at_layers(gpt2, layers=[-1], positions="l1", rank=2)
    assert [site.hook_name for site in last.sites] == ["blocks.2.hook_resid_post"]


def test_tied_and_untied_differ_only_in_what_they_share(bridge) -> None:
    untied = rl.Reft.at_layers(bridge, layers=[1], positions="f2+l2", rank=2, tied=False)
    (_, first), (_, last) = untied
    last.load_state_dict(first.state_dict())
    tied = rl.Reft([(rl.Site("blocks.1.hook_resid_post", "f2+l2"), first)])
    torch.testing.assert_close(logits(bridge, untied), logits(bridge, tied))


@pytest.mark.parametrize(
    ("layers", "rank", "positions", "hook", "message"),
    [
        ([3], 2, "l1", "hook_resid_post", "layer 3 does not exist: the model has layers 0 to 2"),
        ([], 2, "l1", "hook_resid_post", "layers must be"),
        ("some", 2, "l1", "hook_resid_post", "layers must be"),
        ([0], 33, "l1", "hook_resid_post", r"rank must be in \[1, 32\]"),
        ([0], 2, "k1", "hook_resid_post", "cannot parse positions"),
        ([0], 2, "l1", "hook_resid_pst", "nearest are"),
    ],
)
def test_impossible_layouts_are_refused(gpt2, layers, rank, positions, hook, message) -> None:
    # Past the type checker, as a notebook would.
    make = inspect.unwrap(rl.Reft.at_layers.__func__)
    with pytest.raises(ValueError, match=message):
        make(rl.Reft, gpt2, layers=layers, positions=positions, rank=rank, hook=hook)


def test_a_rank_is_asked_for_where_there_is_one(gpt2) -> None:
    red = rl.Reft.at_layers(gpt2, layers="all", positions="f2", intervention=rl.RED)
    assert red.n_parameters() == 3 * 2 * 32
    with pytest.raises(ValueError, match="LoReFT needs a rank"):
        rl.Reft.at_layers(gpt2, layers=[0], positions="f2")
    with pytest.raises(ValueError, match="RED has no rank, got 4"):
        rl.Reft.at_layers(gpt2, layers=[0], positions="f2", intervention=rl.RED, rank=4)


def test_an_edit_of_another_width_is_refused(gpt2, make_reft) -> None:
    with pytest.raises(ValueError, match=r"width 48 and needs activations \[batch, pos, 48\], got \[3, \d+, 32\]"):
        logits(gpt2, make_reft(width=48))


def test_empty_reft_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        rl.Reft([])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", [rl.LoReFT, rl.DiReFT])
@pytest.mark.parametrize("trained", [False, True])
def test_reload_equals_to_the_bit(tmp_path, architecture, kind, trained) -> None:
    bridge = make_bridge(architecture)
    reft = rl.Reft.at_layers(bridge, layers=[0, 2], positions="f1+l2", intervention=kind, rank=3, tied=False)
    if trained:
        examples = list(zip(PROMPTS, COMPLETIONS, strict=True))
        rl.train(bridge, reft, examples, rl.TrainConfig(epochs=3, lr=1e-2, progress=False))
    reft.save_pretrained(tmp_path / "edit", bridge=bridge)
    fresh = make_bridge(architecture)
    again = rl.Reft.from_pretrained(tmp_path / "edit", bridge=fresh)
    assert [repr(site) for site in again.sites] == [repr(site) for site in reft.sites]
    assert torch.equal(logits(fresh, again), logits(bridge, reft))
    assert not torch.equal(logits(bridge, reft), bridge(rl.encode(bridge, PROMPTS).tokens))


def test_sharing_survives_a_reload(tmp_path, gpt2) -> None:
    edit = rl.LoReFT(32, 2)
    shared = rl.Reft([(rl.Site(f"blocks.{layer}.hook_resid_post", "l1"), edit) for layer in range(3)])
    shared.save_pretrained(tmp_path / "edit", bridge=gpt2)
    again = rl.Reft.from_pretrained(tmp_path / "edit", bridge=gpt2)
    assert len({id(intervention) for _, intervention in again}) == 1
    assert again.n_parameters() == shared.n_parameters()


@pytest.mark.parametrize("other", [lambda: make_bridge("gpt2", seed=1), lambda: make_bridge("llama")])
def test_another_model_is_refused_and_the_difference_named(tmp_path, make_reft, other) -> None:
    make_reft().save_pretrained(tmp_path / "edit", bridge=make_bridge(ARCHITECTURES[0]))
    with pytest.raises(ValueError, match=r"differs from this model: .*weights: saved"):
        rl.Reft.from_pretrained(tmp_path / "edit", bridge=other())


def damage_config(folder, change) -> None:
    config = json.loads((folder / "reft_config.json").read_text())
    change(config)
    (folder / "reft_config.json").write_text(json.dumps(config))
    reseal(folder)


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "reft_config.json").unlink(), "is not a saved edit"),
        (lambda f: (f / "reft_config.json").write_text("{"), "is damaged"),
        (lambda f: (f / "reft_config.json").write_text("[]"), "is damaged"),
        (lambda f: (f / "reft.safetensors").write_bytes(b"xx"), "is damaged"),
        (lambda f: (f / "reft.safetensors").unlink(), "is damaged"),
        (lambda f: damage_config(f, lambda c: c.update(schema=99)), "schema 99"),
        (lambda f: damage_config(f, lambda c: c["interventions"][0].update(kind="evil")), "damaged or its kind is unknown"),
        (lambda f: damage_config(f, lambda c: c["interventions"][0]["settings"].update(rank=64)), "rank must be"),
        (lambda f: damage_config(f, lambda c: c.update(which=[5])), "damaged"),
        (lambda f: damage_config(f, lambda c: c["sites"].pop()), "damaged"),
        (lambda f: damage_config(f, lambda c: c["sites"][0].update(positions={"rule": "x"})), "not a position rule"),
        (lambda f: save_file({k: v[:1].clone() for k, v in load_file(f / "reft.safetensors").items()}, f / "reft.safetensors"), "damaged"),
    ],
)  # fmt: skip
def test_damaged_folders_are_refused(tmp_path, gpt2, make_reft, damage, message) -> None:
    make_reft().save_pretrained(tmp_path / "edit", bridge=gpt2)
    damage(tmp_path / "edit")
    with pytest.raises(ValueError, match=message):
        rl.Reft.from_pretrained(tmp_path / "edit", bridge=gpt2)


def test_a_folder_that_is_not_ours_is_never_touched(tmp_path, gpt2, make_reft) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(ValueError, match="so it is not replaced"):
        make_reft().save_pretrained(tmp_path / "thesis", bridge=gpt2)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        make_reft().save_pretrained(tmp_path / "file", bridge=gpt2)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["chapter.txt", "file", "thesis"]


def test_a_failed_save_leaves_the_previous_edit(tmp_path, gpt2, make_reft, monkeypatch) -> None:
    first = make_reft(seed=1)
    first.save_pretrained(tmp_path / "edit", bridge=gpt2)
    monkeypatch.setattr("reftlens.edit.checkpoint.files.save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        make_reft(seed=2).save_pretrained(tmp_path / "edit", bridge=gpt2)
    assert [path.name for path in tmp_path.iterdir()] == ["edit"]
    again = rl.Reft.from_pretrained(tmp_path / "edit", bridge=gpt2)
    assert torch.equal(logits(gpt2, again), logits(gpt2, first))


def test_saving_again_replaces(tmp_path, gpt2, make_reft) -> None:
    for seed in (1, 2):
        reft = make_reft(seed=seed)
        reft.save_pretrained(tmp_path / "edit", bridge=gpt2)
    assert [path.name for path in tmp_path.iterdir()] == ["edit"]
    assert torch.equal(logits(gpt2, rl.Reft.from_pretrained(tmp_path / "edit", bridge=gpt2)), logits(gpt2, reft))


# Several edits on one model, by name.


def composed(bridge):
    parts = {
        "early": rl.Reft.at_layers(bridge, layers=[0], positions="l1", rank=2),
        "late": rl.Reft.at_layers(bridge, layers=[1, 2], positions="f1+l1", rank=2, tied=False),
    }
    return parts, rl.Reft.compose(parts)


def test_composed_edits_act_in_order_and_switch_by_name(bridge) -> None:
    parts, both = composed(bridge)
    batch = rl.encode(bridge, PROMPTS)
    with parts["early"].hooks(bridge, batch), parts["late"].hooks(bridge, batch):
        nested = bridge(batch.tokens).detach()
    assert torch.equal(logits(bridge, both), nested)
    for name, part in parts.items():
        assert torch.equal(logits(bridge, both.only(name)), logits(bridge, part))
    assert torch.equal(logits(bridge, both.without("late")), logits(bridge, parts["early"]))
    assert both.n_parameters() == sum(part.n_parameters() for part in parts.values())
    assert "early: blocks.0" in repr(both)


def test_scales_multiply_and_zero_is_the_base(bridge) -> None:
    parts, both = composed(bridge)
    base = bridge(rl.encode(bridge, PROMPTS).tokens)
    torch.testing.assert_close(logits(bridge, both.scaled(0.0)), base, rtol=0, atol=0)
    half = both.scaled({"late": 0.5}).scaled({"late": 0.5, "early": 3.0})
    assert half.scales == {"late": 0.25, "early": 3.0}
    assert [edit.scale for edit in half.edits(rl.encode(bridge, PROMPTS))] == [3.0, 0.25, 0.25, 0.25, 0.25]
    assert both.scales == {"early": 1.0, "late": 1.0}, "the original keeps its scales"
    assert torch.equal(logits(bridge, both.scaled({"late": 0.0})), logits(bridge, parts["early"]))


def test_composition_trains_shares_and_reloads(tmp_path, gpt2) -> None:
    parts, both = composed(gpt2)
    frozen = {key: value.clone() for key, value in parts["late"].state_dict().items()}
    rl.train(
        gpt2, both.only("early"), list(zip(PROMPTS, COMPLETIONS, strict=True)), rl.TrainConfig(epochs=2, progress=False)
    )
    assert all(torch.equal(value, frozen[key]) for key, value in parts["late"].state_dict().items())
    assert torch.equal(logits(gpt2, both.only("early")), logits(gpt2, parts["early"])), "one set of weights"
    scaled = both.scaled({"late": 0.5})
    scaled.save_pretrained(tmp_path / "edit", bridge=gpt2)
    again = rl.Reft.from_pretrained(tmp_path / "edit", bridge=gpt2)
    assert (again.names, again.scales) == (scaled.names, scaled.scales)
    assert torch.equal(logits(gpt2, again), logits(gpt2, scaled))


def test_unknown_names_are_refused(gpt2) -> None:
    _, both = composed(gpt2)
    for refused in (lambda: both.only("latte"), lambda: both.without("x"), lambda: both.scaled({"y": 2.0})):
        with pytest.raises(ValueError, match=r"Unknown edit '.'. Choose from: early, late|Unknown edit 'latte'"):
            refused()
    with pytest.raises(ValueError, match="every edit off"):
        both.without("early", "late")
    with pytest.raises(ValueError, match="one name for each"):
        rl.Reft(list(both), names=["a"])
    with pytest.raises(ValueError, match="needs at least one edit"):
        rl.Reft.compose({})
    with pytest.raises(ValueError, match="different scales"):
        rl.Reft.compose({"all": both.scaled({"late": 0.5})})
