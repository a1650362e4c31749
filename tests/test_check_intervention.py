"""An outside intervention that says one thing and does another is refused by whoever would believe it."""

from __future__ import annotations

import math
import re

import pytest
import torch
from conftest import PROMPTS, Every, make_bridge, make_edit
from torch import nn

import reftlens as rl
from reftlens.analysis.controls.turned import turned
from reftlens.edit.checkpoint.card import profile
from reftlens.interventions import FAMILY, Affine, Orthonormal, SourceIntervention

POST = "blocks.1.hook_resid_post"


class Shift(rl.Intervention):
    """h + R^T b, as in CONTRIBUTING."""

    kind = "shift"

    def __init__(self, d_model, rank):
        super().__init__(d_model, rank)
        self.rotation = Orthonormal(rank, d_model)
        self.target = nn.Parameter(torch.ones(rank))

    def delta(self, resid):
        return (self.target @ self.rotation()).to(resid.dtype).expand_as(resid)

    def affine(self):
        R = self.rotation()
        return Affine(write=R[:0], read=R[:0], constant=self.target @ R)


def variant(**members):
    """The same class with some members written anew."""
    return type("Variant", (Shift,), {"kind": "variant", **members})


def times_ten(self):
    affine = Shift.affine(self)
    return affine._replace(constant=affine.constant * 10)


class Gate(Shift):
    """Not affine: which says so, and whose basis is written by hand."""

    kind = "gate"

    def delta(self, resid):
        R = self.rotation()
        return torch.relu(resid.to(R) @ R.T + self.target).matmul(R).to(resid.dtype)

    def affine(self):
        raise rl.NotAffineError("a gate is not of the form A h + c")

    def basis(self):
        return self.rotation().detach().double()


def edit_of(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return rl.Reft([(rl.Site(POST, "f1+l2"), kind(32, 2))])


USES = {
    "decompose": lambda b, r: rl.analysis.decompose(b, r, [rl.encode(b, PROMPTS)]),
    "ledger": lambda b, r: rl.analysis.ledger(b, r, PROMPTS[0]),
    "edit_size": lambda b, r: rl.analysis.edit_size(b, r, PROMPTS[0]),
}


@pytest.mark.parametrize("use", USES)
def test_analyses_refuse_an_affine_that_is_not_the_change(gpt2, use) -> None:
    USES[use](gpt2, edit_of(Shift))
    with pytest.raises(
        ValueError, match=r"Variant.affine\(\) gives a change of norm 14.1 where delta\(\) gives one of norm 1.41"
    ):
        USES[use](gpt2, edit_of(variant(affine=times_ten)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_control_refuses_a_basis_that_does_not_span_the_change(dtype) -> None:
    """Today's fault: the control is smaller than the edit, and called the same change turned."""
    bridge = make_bridge("gpt2", dtype=dtype)
    batch = rl.encode(bridge, PROMPTS)
    norms = []
    for kind in (Shift, Gate):
        reft = edit_of(kind)
        (edit,), (control,) = reft.edits(batch), turned(reft, seed=0).edits(batch)
        h = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
        norms += [edit.intervention.delta(h).float().norm(dim=-1), control.intervention.delta(h).float().norm(dim=-1)]
        torch.testing.assert_close(norms[-1], norms[-2], rtol=0.02, atol=1e-5)
    short = type("Short", (Gate,), {"kind": "short", "basis": lambda self: Gate.basis(self)[:1]})
    smaller = r"Short.basis\(\) contains only norm [\d.]+ of a change of norm [\d.]+ by delta"
    with pytest.raises(ValueError, match=smaller), turned(edit_of(short), seed=0).hooks(bridge, batch):
        bridge(batch.tokens, attention_mask=batch.attention_mask)
    skew = type("Skew", (Gate,), {"kind": "skew", "basis": lambda self: Gate.basis(self) * 2})
    with pytest.raises(ValueError, match=r"rows of Skew.basis\(\) must be orthonormal"):
        rl.analysis.edit_size(bridge, edit_of(skew), PROMPTS[0])


def test_merging_and_cards_refuse_it_too(gpt2) -> None:
    everywhere = rl.Site("blocks.1.hook_mlp_out", rl.All() | rl.Generated())
    wrong = rl.Reft([(everywhere, variant(affine=times_ten)(32, 2))])
    with pytest.raises(ValueError, match=r"Variant.affine\(\) gives"):
        rl.merge(gpt2, wrong)
    with pytest.raises(ValueError, match=r"Variant.affine\(\) gives"):
        profile(wrong._pairs())
    rl.merge(gpt2, rl.Reft([(everywhere, Shift(32, 2))]))


@pytest.mark.parametrize("kind", [*FAMILY, Shift, Gate], ids=lambda kind: kind.__name__)
def test_every_member_passes(kind) -> None:
    settings = {"d_model": 16, "parts": {"first": 1, "second": 2}} if "parts" in kind.arguments else None
    source = torch.ones(16)
    prepare = (lambda edit: edit.take(source)) if issubclass(kind, SourceIntervention) else None
    assert len(rl.check_intervention(kind, settings=settings, prepare=prepare)) == 7


def detached(self, resid):
    return Shift.delta(self, resid).detach()


def half_detached(self, resid):
    return (self.target.detach() @ self.rotation()).to(resid.dtype).expand_as(resid)


def in_place(self, resid):
    return resid.add_(1.0) * 0


def double(self, resid):
    return Shift.delta(self, resid).double()


def mean_of_all(self, resid):
    return resid.mean(dim=-2, keepdim=True).expand_as(resid)


def not_a_parameter(self, d_model, rank):
    Shift.__init__(self, d_model, rank)
    self.hidden = torch.randn(d_model)


def with_hidden(self, resid):
    return Shift.delta(self, resid) + self.hidden.to(resid.dtype)


def late(self, d_model, rank):
    Shift.__init__(self, d_model, rank)
    if bool(self.target.sum() > 100):
        raise ValueError("unlikely")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (nn.Linear, "must be a subclass of rl.Intervention"),
        (type("Bare", (rl.Intervention,), {"kind": "bare"}), "Bare must implement affine, delta"),
        (variant(kind="loreft"), "kind = 'loreft' already belongs to LoReFT: choose another kind for Variant"),
        (variant(kind="not a name"), "Variant.kind must be a short name"),
        (variant(forward=lambda self, resid: resid), "must not override forward"),
        (variant(arguments=("d_model", "rank", "extra")), "pass settings="),
        (variant(settings=lambda self: {"d_model": self.d_model, "rank": {3}}), "must be plain JSON values"),
        (variant(settings=lambda self: {"d_model": self.d_model}), "survive JSON and have the keys"),
        (variant(settings=lambda self: {"d_model": self.d_model, "rank": 1}), "must have the same settings and shapes"),
        (variant(delta=double), "must return the shape and dtype of its input"),
        (variant(delta=in_place), "must not write into the activation"),
        (variant(delta=mean_of_all), "implement delta_of"),
        (variant(delta=detached), "target, rotation.weight gets no gradient"),
        (variant(delta=half_detached), "target gets no gradient"),
        (variant(affine=times_ten), r"affine\(\) gives"),
        (variant(basis=lambda self: Shift.basis(self)[:0]), r"basis\(\) contains only norm 0 of"),
        (variant(__init__=not_a_parameter, delta=with_hidden), "store all numbers in parameters|meta"),
        (variant(__init__=late), "meta device"),
    ],
)
def test_each_fault_of_a_class_is_named(kind, message) -> None:
    with pytest.raises(ValueError, match="cannot be used as an intervention") as caught:
        rl.check_intervention(kind)
    assert re.search(message, str(caught.value)), str(caught.value)


# Classes of your own, known by name.


EXAMPLES = [(prompt, " Ostra") for prompt in PROMPTS]


def test_own_kinds_and_rules_train_save_and_load_once_they_are_registered(tmp_path, gpt2, known) -> None:
    reft = rl.Reft([(rl.Site(POST, Every(3) | rl.Last(1)), Shift(32, 3))])
    config = rl.TrainConfig(epochs=1, progress=False, output_dir=tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"Every\(step=3\) .* could not be loaded after saving.* register it with @rl\.register"
    ):
        rl.train(gpt2, reft, EXAMPLES, config)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="could not be loaded after saving"):
        reft.save_pretrained(tmp_path / "edit", bridge=gpt2)
    assert rl.register(Every) is Every
    rl.train(gpt2, reft, EXAMPLES, config)
    folder = reft.save_pretrained(tmp_path / "edit", bridge=gpt2, card=False)
    with pytest.raises(ValueError, match=r"Unknown kind 'shift'.* family=\[\.\.\., YourClass\].*--import"):
        rl.Reft.from_pretrained(folder, bridge=gpt2)
    by_family = rl.Reft.from_pretrained(folder, bridge=gpt2, family=[Shift])
    rl.register(Shift)
    loaded = rl.Reft.from_pretrained(folder, bridge=gpt2)
    assert loaded.sites == by_family.sites == reft.sites
    assert type(loaded[0][1]) is Shift
    assert all(torch.equal(value, reft.state_dict()[name]) for name, value in loaded.state_dict().items())
    named = rl.Reft.at_layers(gpt2, layers=1, positions='{"rule": "every", "step": 3}', intervention="shift", rank=3)
    assert (named.sites[0].positions, type(named[0][1])) == (Every(3), Shift)


def test_a_class_that_no_file_could_name_is_not_registered_trained_or_saved(tmp_path, gpt2, known) -> None:
    nameless = type("Nameless", (Shift,), {})
    del_kind = type("Nameless", (rl.Intervention,), {name: Shift.__dict__[name] for name in ("delta", "affine")})
    taken, unwritten = variant(kind="loreft"), type("Unwritten", (rl.Intervention,), {"kind": "unwritten"})
    rl.register(Shift)
    rl.register(Shift)
    for cls, kind, message in (
        (nameless, ValueError, "kind = 'shift' already belongs to Shift"),
        (del_kind, ValueError, "Nameless.kind must be a short name"),
        (taken, ValueError, "kind = 'loreft' already belongs to LoReFT"),
        (unwritten, ValueError, "Unwritten must implement affine, delta"),
        (type("Rule", (Every,), {"rule": "span"}), ValueError, "rule = 'span' already belongs to another class"),
        (type("Rule", (Every,), {"rule": None}), ValueError, "Rule.rule must be a short name"),
        (int, TypeError, "must be a subclass of rl.Intervention"),
    ):
        with pytest.raises(kind, match=message):
            rl.register(cls)
    reft = rl.Reft([(rl.Site(POST, "l1"), del_kind(32, 3))])
    with pytest.raises(ValueError, match=r"Nameless.kind must be a short name"):
        rl.train(gpt2, reft, EXAMPLES, rl.TrainConfig(progress=False))
    with pytest.raises(ValueError, match=r"Nameless.kind must be a short name"):
        reft.save_pretrained(tmp_path / "edit", bridge=gpt2)
    vague = type("Vague", (Every,), {"rule": "vague", "spec": lambda self: {"rule": "vague"}})
    rl.register(vague)
    with pytest.raises(ValueError, match=r"would be loaded as Vague\(step=2\): spec\(\) must return all arguments"):
        rl.Reft([(rl.Site(POST, vague(3)), Shift(32, 3))]).save_pretrained(tmp_path / "edit", bridge=gpt2)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda pairs: rl.Reft(pairs, names=[1]), r"the name of an edit must be a string, got 1|names must be Sequence|Expected type: .*Sequence\[str\]"),
        (lambda pairs: rl.Reft(pairs, names=["\ud800"]), "must not hold a lone surrogate"),
        (lambda pairs: rl.Reft(pairs, scales={"edit": math.nan}), "the scale of 'edit' must be a finite number, got nan"),
        (lambda pairs: rl.Reft(pairs).scaled(math.nan), "the scale of 'edit' must be a finite number, got nan"),
        (lambda pairs: rl.Reft(pairs).scaled({"edit": math.inf}), "the scale of 'edit' must be a finite number, got inf"),
        (lambda pairs: rl.Reft(pairs).scaled(1e200).scaled(1e200), "the scale of 'edit' must be a finite number, got inf"),
        (lambda pairs: rl.Edit(POST, pairs[0][1], torch.ones(1, 2) > 0, scale=math.nan), "scale must be a finite number"),
        (lambda pairs: rl.Edit(POST, pairs[0][1], torch.ones(1, 2) > 0, dropout=math.nan), "dropout must be a finite"),
        (lambda _: rl.SteeringVector(32, math.nan), "scale must be a finite number, got nan"),
        (lambda _: rl.TrainConfig(dropout=math.nan), "dropout must be a finite number, got nan"),
    ],
)  # fmt: skip
def test_settings_that_could_not_be_loaded_are_refused_at_construction(make, message) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make([(rl.Site(POST, "l1"), make_edit(rl.LoReFT))])
