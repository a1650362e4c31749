"""pyreft's folders: real ones where they are at hand, and ones made here with torch's own orthogonal parametrisation.

Real checkpoints lie outside the repository: set REFTLENS_PYREFT_FIXTURES to their folder, or put them into
`../shared/fixtures/pyreft`. `tests/pyreft_roundtrip.py` compares with pyreft itself.
"""

from __future__ import annotations

import io
import json
import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_bridge, make_edit
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

import reftlens as rl
from reftlens.edit.pyreft.places import make_config, make_key
from reftlens.files.seal import UncheckedWarning

ROOT = Path(__file__).parent.parent
FIXTURES = Path(os.environ.get("REFTLENS_PYREFT_FIXTURES", ROOT.parent / "shared" / "fixtures" / "pyreft"))
REAL = sorted(path.parent.name for path in FIXTURES.glob("*/meta.json"))
KINDS = [rl.LoReFT, rl.NoReFT, rl.ConsReFT, rl.LobiReFT, rl.AdditiveLoReFT, rl.DiReFT]
D, RANK = 32, 3


@pytest.mark.skipif(not REAL, reason="real pyreft checkpoints are not on this machine")
@pytest.mark.parametrize("where", ["reft", "trainer_ckpt", "trainer_ckpt/intervenable_model"])
@pytest.mark.parametrize("name", REAL or ["none"])
def test_real_checkpoints_give_their_recorded_logits(name, where, tmp_path) -> None:
    spec = json.loads((FIXTURES / name / "meta.json").read_text())["case"]
    recorded = np.load(FIXTURES / name / "io.npz")
    bridge = rl.load_bridge(str(FIXTURES / f"{spec['arch']}_base"))
    # Without a config the tensors of these classes do not tell which of two it is.
    ask = {"NoreftIntervention": rl.NoReFT, "LobireftIntervention": rl.LobiReFT}
    intervention = ask.get(spec["cls"]) if where != "reft" else None
    folder = FIXTURES / name / where
    reft = rl.load_pyreft(folder, bridge=bridge, positions=spec["pos"], intervention=intervention)
    ids, mask = torch.tensor(recorded["input_ids"]), torch.tensor(recorded["attention_mask"])
    prompts = mask.bool() & (torch.tensor(recorded["labels"]) == -100)
    with torch.no_grad(), reft.hooks(bridge, prompts):
        logits = bridge(ids, attention_mask=mask)
    real = mask.bool()
    worst = float((logits - torch.tensor(recorded["intervened_logits"]))[real].abs().max())
    assert worst < 1e-5
    assert float((logits - torch.tensor(recorded["base_logits"]))[real].abs().max()) > 0.5
    for edit, places in zip(reft.edits(prompts), recorded["intervention_locations"].transpose(1, 0, 2), strict=True):
        for row, wanted in zip(edit.mask, places, strict=True):
            assert set(row.nonzero().flatten().tolist()) == set(wanted.tolist())
    rl.save_pyreft(reft, tmp_path / "one")
    again = rl.load_pyreft(tmp_path / "one", bridge=bridge, positions=spec["pos"])
    rl.save_pyreft(again, tmp_path / "two")
    assert_same_bytes(tmp_path / "one", tmp_path / "two")


def assert_same_bytes(one: Path, other: Path) -> None:
    assert sorted(file.name for file in one.iterdir()) == sorted(file.name for file in other.iterdir())
    for file in one.iterdir():
        assert file.read_bytes() == (other / file.name).read_bytes(), file.name


# Folders made here.


def rotation(seed: int) -> nn.Module:
    """A parametrised R as pyreft has it, trained a little."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = nn.Module()
        layer.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(D, RANK)))
        layer = orthogonal(layer)
        with torch.no_grad():
            layer.parametrizations.weight.original.add_(0.3 * torch.randn(D, RANK).tril(-1))
        return layer


def pyreft_state(name: str, *, seed: int = 0, dtype=torch.float32, add_bias: bool = True):
    """What pyreft's class saves, and its change as a function, by its own equation in float64."""
    generator = torch.Generator().manual_seed(seed)
    W, b, P = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((RANK, D), (RANK,), (RANK, D)))
    p = torch.randn(RANK, generator=generator).to(dtype)
    layer = rotation(seed)
    R = layer.weight.detach()
    scalars = {"embed_dim": torch.tensor(D), "interchange_dim": torch.tensor(D)}
    turned = {f"rotate_layer.{key}": tensor for key, tensor in layer.state_dict().items()}
    linear = {"learned_source.weight": W, "learned_source.bias": b}
    projected = {"proj_layer.weight": P, "proj_layer.bias": p} if add_bias else {"proj_layer.weight": P}
    state = {
        "LoreftIntervention": {"weight": W, "bias": b, "rotate_layer": R},
        "DireftIntervention": {**scalars, **turned, **linear},
        "ConsreftIntervention": {"learned_source": b, **scalars, **turned},
        "LobireftIntervention": {"learned_source": b, **scalars, **turned},
        "NoreftIntervention": {**scalars, **projected, **linear},
        "NodireftIntervention": {**scalars, **projected, **linear},
    }[name]
    W, b, P, p, R = (tensor.double() for tensor in (W, b, P, p if add_bias else torch.zeros(RANK), R))
    change = {
        "LoreftIntervention": lambda h: (h @ W.T + b - h @ R) @ R.T,
        "DireftIntervention": lambda h: (h @ W.T + b) @ R.T,
        "ConsreftIntervention": lambda h: (b - h @ R) @ R.T,
        "LobireftIntervention": lambda h: (b @ R.T).expand_as(h),
        "NoreftIntervention": lambda h: (h @ W.T + b - (h @ P.T + p)) @ P,
        "NodireftIntervention": lambda h: (h @ W.T + b) @ P,
    }[name]
    return OrderedDict(state), change


def write_folder(folder: Path, states, *, names=None, layers=(1,), keys=None, config=True, link=None) -> Path:
    folder.mkdir(parents=True)
    turns: dict[int, int] = {}
    made = []
    for layer in layers:
        made.append(make_key(layer, turns.get(layer, 0)))
        turns[layer] = turns.get(layer, 0) + 1
    keys = keys or made
    for key, state in zip(keys, states, strict=True):
        torch.save(state, folder / f"intkey_{key}.bin")
    if config:
        text = make_config(names, layers, [RANK] * len(keys), keys, D)
        document = json.loads(text)
        for representation in document["representations"]:
            representation[9] = link
        (folder / "config.json").write_text(json.dumps(document))
    return folder


NAMES = [
    "LoreftIntervention",
    "NoreftIntervention",
    "ConsreftIntervention",
    "LobireftIntervention",
    "DireftIntervention",
    "NodireftIntervention",
]


@pytest.mark.sampled(8)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("add_bias", [False, True])
@pytest.mark.parametrize(("name", "kind"), list(zip(NAMES, KINDS, strict=True)))
def test_each_class_is_its_equation(tmp_path, gpt2, name, kind, add_bias, dtype) -> None:
    state, change = pyreft_state(name, dtype=dtype, add_bias=add_bias)
    folder = write_folder(tmp_path / "x", [state], names=[name])
    ((site, edit),) = rl.load_pyreft(folder, bridge=gpt2, positions="l1")
    assert (type(edit), site.hook_name) == (kind, "blocks.1.hook_resid_post")
    h = torch.randn(5, D, dtype=torch.float64)
    torch.testing.assert_close(edit.double().delta(h), change(h), rtol=0, atol=3e-5)
    assert all(parameter.requires_grad for parameter in edit.parameters())


@pytest.mark.sampled(6)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_written_folders_read_back_and_are_the_same_to_the_byte(tmp_path, kind, tied) -> None:
    bridge = make_bridge("gpt2")
    reft = rl.Reft.at_layers(bridge, layers=[0, 2], positions="f2+l3", intervention=kind, rank=RANK, tied=tied)
    rl.save_pyreft(reft, tmp_path / "one")
    again = rl.load_pyreft(tmp_path / "one", bridge=bridge, positions="f2+l3")
    rl.save_pyreft(again, tmp_path / "two")
    assert_same_bytes(tmp_path / "one", tmp_path / "two")
    mask = torch.ones(2, 12, dtype=torch.bool)
    h = torch.randn(4, D)

    def changes(edits):
        return {(e.hook_name, tuple(e.mask[0].tolist())): e.intervention.delta(h) for e in edits.edits(mask)}

    before, after = changes(reft), changes(again)
    assert before.keys() == after.keys()
    for place, change in before.items():
        torch.testing.assert_close(after[place], change, rtol=0, atol=1e-6)


def test_untied_takes_the_first_part_and_then_the_second(tmp_path, gpt2) -> None:
    states = [pyreft_state("LoreftIntervention", seed=seed)[0] for seed in range(4)]
    names = ["LoreftIntervention"] * 4
    folder = write_folder(tmp_path / "x", states, names=names, layers=(0, 2, 0, 2))
    reft = rl.load_pyreft(folder, bridge=gpt2, positions="f2+l3")
    found = [(site.hook_name, repr(site.positions)) for site in reft.sites]
    first, last = "First(2, half=True)", "Last(3, half=True)"
    post = "blocks.{}.hook_resid_post"
    assert found == [(post.format(0), first), (post.format(2), first), (post.format(0), last), (post.format(2), last)]
    for (_, edit), state in zip(reft, states, strict=True):
        torch.testing.assert_close(edit.source.weight, state["weight"], rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"2 edits after one block.*has 1 parts: pass a list of 4 rules"):
        rl.load_pyreft(folder, bridge=gpt2, positions="l1")
    listed = rl.load_pyreft(folder, bridge=gpt2, positions=["f1", "f2", rl.All(), rl.At(-1)])
    assert [repr(site.positions) for site in listed.sites][2:] == ["All()", "At(-1)"]
    with pytest.raises(ValueError, match=r"one rule for each of 4 edits .*got 1"):
        rl.load_pyreft(folder, bridge=gpt2, positions=["f1"])


def test_keys_with_dots_and_paths_of_the_model(tmp_path, gpt2) -> None:
    state, _ = pyreft_state("LoreftIntervention")
    dotted = write_folder(
        tmp_path / "old", [state], names=["LoreftIntervention"], keys=["layer.1.comp.block_output.unit.pos.nunit.1#0"]
    )
    document = json.loads((dotted / "config.json").read_text())
    document["representations"] = [values[:13] for values in document["representations"]]
    (dotted / "config.json").write_text(json.dumps(document))
    key = "comp_transformer_h[2]_output_unit_pos_nunit_1#0"
    path = write_folder(tmp_path / "path", [state], names=["LoreftIntervention"], keys=[key])
    document = json.loads((path / "config.json").read_text())
    document["representations"][0][1] = "transformer.h[2].output"
    (path / "config.json").write_text(json.dumps(document))
    assert rl.load_pyreft(dotted, bridge=gpt2, positions="l1").sites[0].hook_name == "blocks.1.hook_resid_post"
    assert rl.load_pyreft(path, bridge=gpt2, positions="l1").sites[0].hook_name == "blocks.2.hook_resid_post"


def test_linked_edits_are_one(tmp_path, gpt2) -> None:
    state, _ = pyreft_state("LoreftIntervention")
    names = ["LoreftIntervention"] * 2
    folder = write_folder(tmp_path / "x", [state, state], names=names, layers=(0, 1), link="one")
    reft = rl.load_pyreft(folder, bridge=gpt2, positions="l1")
    assert len(reft.interventions) == 1
    rl.save_pyreft(reft, tmp_path / "copy")
    assert len(rl.load_pyreft(tmp_path / "copy", bridge=gpt2, positions="l1").interventions) == 2
    other, _ = pyreft_state("LoreftIntervention", seed=5)
    folder = write_folder(tmp_path / "y", [state, other], names=names, layers=(0, 1), link=7)
    with pytest.raises(ValueError, match="linked to another edit by 7, but their weights differ"):
        rl.load_pyreft(folder, bridge=gpt2, positions="l1")
    other, _ = pyreft_state("NodireftIntervention")
    mixed = ["LoreftIntervention", "NodireftIntervention"]
    folder = write_folder(tmp_path / "z", [state, other], names=mixed, layers=(0, 1), link=7)
    with pytest.raises(ValueError, match="linked to another edit by 7, but their weights differ"):
        rl.load_pyreft(folder, bridge=gpt2, positions="l1")


def test_a_file_in_anothers_place_is_refused(tmp_path, gpt2) -> None:
    reft = rl.Reft.at_layers(gpt2, layers=[0, 2], positions="l1", rank=RANK, seed=0)
    folder = rl.save_pyreft(reft, tmp_path / "größe")
    state, _ = pyreft_state("LoreftIntervention")
    theirs = write_folder(tmp_path / "theirs", [state, state], names=["LoreftIntervention"] * 2, layers=(0, 2))
    for place in (folder, theirs):
        rl.load_pyreft(place, bridge=gpt2, positions="l1")
        first, second = sorted(place.glob("*.bin"))
        second.write_bytes(first.read_bytes())
        with pytest.raises(ValueError, match=rf"it was saved as {first.name}, but is stored here as {second.name}"):
            rl.load_pyreft(place, bridge=gpt2, positions="l1")
    stream = io.BytesIO()
    torch.save(state, stream)
    first.write_bytes(stream.getvalue())
    torch.save(state, second)
    with pytest.warns(UncheckedWarning, match="does not record its own name"):
        rl.load_pyreft(theirs, bridge=gpt2, positions="l1")


# What a folder does not tell, and what the family cannot express.


def test_without_a_config_the_class_is_asked_for(tmp_path, gpt2) -> None:
    state, _ = pyreft_state("ConsreftIntervention")
    folder = write_folder(tmp_path / "x" / "intervenable_model", [state], config=False).parent
    with pytest.raises(
        ValueError, match=r"Consreft.* or Lobireft.*pass intervention=ConsReFT or intervention=LobiReFT"
    ):
        rl.load_pyreft(folder, bridge=gpt2, positions="l1")
    for kind in (rl.ConsReFT, rl.LobiReFT):
        ((_, edit),) = rl.load_pyreft(folder, bridge=gpt2, positions="l1", intervention=kind)
        assert type(edit) is kind
    with pytest.raises(ValueError, match=r"which is not LoReFT"):
        rl.load_pyreft(folder, bridge=gpt2, positions="l1", intervention=rl.LoReFT)


def test_a_drifted_rotation_is_refused_or_read_as_it_ran(tmp_path, gpt2) -> None:
    state, _ = pyreft_state("LoreftIntervention")
    R = state["rotate_layer"] = state["rotate_layer"] + 0.1 * torch.randn(D, RANK)
    folder = write_folder(tmp_path / "x", [state], names=["LoreftIntervention"])
    with pytest.raises(ValueError, match=r"R is not orthonormal .*pass intervention=NoReFT, the same equation"):
        rl.load_pyreft(folder, bridge=gpt2, positions="l1")
    ((_, edit),) = rl.load_pyreft(folder, bridge=gpt2, positions="l1", intervention=rl.NoReFT)
    h = torch.randn(5, D)
    expected = (h @ state["weight"].T + state["bias"] - h @ R) @ R.T
    torch.testing.assert_close(edit.delta(h), expected, rtol=0, atol=1e-5)


def spoil(folder: Path, change) -> None:
    document = json.loads((folder / "config.json").read_text())
    change(document)
    (folder / "config.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["representations"][0].__setitem__(1, "mlp_output"), "component 'mlp_output' is not supported"),
        (lambda c: c["representations"][0].__setitem__(1, "model.embed_tokens.output"), "is not supported"),
        (lambda c: c["representations"][0].__setitem__(2, "h.pos"), "only edits of single positions"),
        (lambda c: c["representations"][0].__setitem__(7, [[0, 2], [2, 4]]), "sets subspace_partition, which is not supported"),
        (lambda c: c["representations"][0].__setitem__(4, 2), r"weight must be \[2, 32\] on this model, got \[3, 32\]"),
        (lambda c: c["representations"][0].__setitem__(4, 33), r"rank must be in \[1, 32\], got 33"),
        (lambda c: c["representations"][0].__setitem__(0, 2), "no file for edit 0 after block 2"),
        (lambda c: c["representations"].append([0, "block_output", "pos", 1, 3, *[None] * 9]), "it has 2 representations but 1 classes"),
        (lambda c: c.update(intervention_types=["<class 'evil.LoreftIntervention'>"]), "not one of pyreft's own"),
        (lambda c: c.update(intervention_types=["<class 'pyreft.interventions.DireftIntervention'>"]), "not those of Direft"),
        (lambda c: c.pop("representations"), "it has no 'representations'"),
    ],
)  # fmt: skip
def test_configs_that_say_something_else_are_refused(tmp_path, gpt2, change, message) -> None:
    state, _ = pyreft_state("LoreftIntervention")
    folder = write_folder(tmp_path / "x", [state], names=["LoreftIntervention"])
    rl.load_pyreft(folder, bridge=gpt2, positions="l1")
    spoil(folder, change)
    with pytest.raises(ValueError, match=message):
        rl.load_pyreft(folder, bridge=gpt2, positions="l1")


def test_other_models_trained_bases_and_activation_functions_are_refused(tmp_path, gpt2) -> None:
    state, _ = pyreft_state("LoreftIntervention")
    folder = write_folder(tmp_path / "x", [state], names=["LoreftIntervention"], layers=(7,))
    with pytest.raises(ValueError, match="is after block 7: this model has blocks 0 to 2"):
        rl.load_pyreft(folder, bridge=gpt2, positions="l1")
    with pytest.raises(ValueError, match="act_fn must be None or 'linear', got 'gelu'"):
        rl.load_pyreft(folder, bridge=gpt2, positions="l1", act_fn="gelu")
    with pytest.raises(ValueError, match=r"is not a pyreft checkpoint: it has no intkey_\*\.bin; x inside it"):
        rl.load_pyreft(tmp_path, bridge=gpt2, positions="l1")
    folder = write_folder(tmp_path / "y", [state], config=False)
    torch.save({}, folder / "pytorch_model.bin")
    rl.load_pyreft(folder, bridge=gpt2, positions="l1")
    torch.save({"score.weight": nn.Parameter(torch.zeros(2, D))}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"1 trained tensors of the base model itself \(score\.weight\)"):
        rl.load_pyreft(folder, bridge=gpt2, positions="l1")
    torch.save({"score.weight": torch.zeros(2**20)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="may hold trained tensors of the base model"):
        rl.load_pyreft(folder, bridge=gpt2, positions="l1")


@pytest.mark.parametrize(
    ("reft", "message"),
    [
        (lambda: rl.Reft([(rl.Site("blocks.1.hook_resid_post", "l1"), make_edit(rl.RED))]), "no class for RED"),
        (lambda: rl.Reft([(rl.Site("blocks.1.hook_mlp_out", "l1"), make_edit(rl.LoReFT))]), "cannot be written: pyreft's block_output corresponds only to"),
        (lambda: rl.Reft([(rl.Site("blocks.1.hook_resid_post", "l1"), make_edit(rl.LoReFT))]).scaled(2.0), "has the scale 2"),
    ],
)  # fmt: skip
def test_what_pyreft_cannot_express_is_not_written(tmp_path, reft, message) -> None:
    with pytest.raises(ValueError, match=message):
        rl.save_pyreft(reft(), tmp_path / "x")
    assert not any(tmp_path.iterdir())


def test_a_model_of_somebody_is_not_overwritten(tmp_path, make_reft) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("years of training")
    with pytest.raises(ValueError, match="so it is not replaced"):
        rl.save_pyreft(make_reft(), tmp_path)
    rl.save_pyreft(make_reft(seed=1), tmp_path / "new")
    rl.save_pyreft(make_reft(seed=2), tmp_path / "new")


def test_a_folder_of_one_site_is_what_easysteer_reads(tmp_path) -> None:
    """What its `from_pyreft` asks of a folder, by its source: one file, one config, one plain LoReFT after a block."""
    rl.save_pyreft(rl.Reft([(rl.Site("blocks.1.hook_resid_post", "l1"), make_edit(rl.LoReFT))]), tmp_path / "x")
    assert sorted(file.suffix for file in (tmp_path / "x").iterdir()) == [".bin", ".json"]
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert config["intervention_types"] == ["<class 'pyreft.interventions.LoreftIntervention'>"]
    (representation,) = config["representations"]
    assert representation == [1, "block_output", "pos", 1, 3, *[None] * 9]
    state = torch.load(next((tmp_path / "x").glob("*.bin")), weights_only=True)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "rotate_layer": (32, 3),
        "weight": (3, 32),
        "bias": (3,),
    }
