"""Sparse dictionaries: encoders against formulas written feature by feature, folders in SAELens' format, and what they say."""

from __future__ import annotations

import json
import math

import pytest
import torch
from conftest import PROMPTS, make_bridge
from safetensors.torch import load_file, save_file
from transformer_lens.model_bridge import TransformerBridge

import reftlens as rl
from reftlens.analysis import load_dictionary, readouts, save_dictionary, train_dictionary
from reftlens.analysis.engine.dictionary import KINDS, Dictionary

POST = "blocks.0.hook_resid_post"
D, F = 6, 9


def drawn(kind: str = "standard", seed: int = 0, d: int = D, features: int = F, **options) -> Dictionary:
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g)

    names = {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}.get(kind, ("b_enc",))
    vectors = {name: 0.3 * draw(features) for name in names}
    width = options.pop("d_out", d)
    return Dictionary(
        kind,
        options.pop("hook_name", POST),
        draw(d, features),
        draw(features, width),
        0.5 * draw(width),
        vectors,
        k=3 if kind == "topk" else 0,
        **options,
    )


def one_by_one(it: Dictionary, h: torch.Tensor) -> tuple[list[float], list[float]]:
    """Features and reconstruction of one activation, in plain numbers, from the equations of each paper."""
    x, scale, shift = h.double().tolist(), 1.0, 0.0
    if it.normalise == "layer_norm":
        shift = sum(x) / len(x)
        scale = math.sqrt(sum((value - shift) ** 2 for value in x) / (len(x) - 1))
        x = [(value - shift) / (scale + 1e-5) for value in x]
    elif it.normalise == "constant_norm_rescale":
        scale = math.sqrt(sum(value**2 for value in x) / len(x))
        x = [value / scale for value in x]
    bias = it.bias.double().tolist()
    if it.subtract and not it.hook_name_out:
        x = [value - b for value, b in zip(x, bias, strict=True)]
    vectors = {name: v.double().tolist() for name, v in it.vectors.items()}
    columns = it.encoder.T.double().tolist()
    lengths = [math.sqrt(sum(v**2 for v in row)) if it.by_length else 1.0 for row in it.decoder.double().tolist()]
    found = []
    for f, column in enumerate(columns):
        dot = sum(a * b for a, b in zip(x, column, strict=True))
        if it.kind == "gated":
            size = max(0.0, dot * math.exp(vectors["r_mag"][f]) + vectors["b_mag"][f])
            found.append(size if dot + vectors["b_gate"][f] > 0 else 0.0)
            continue
        a = (dot + vectors["b_enc"][f]) * lengths[f]
        wanted = a > vectors["threshold"][f] if it.kind == "jumprelu" else True
        found.append(max(0.0, a) if wanted or it.kind == "topk" else 0.0)
    if it.kind == "topk":
        allowed = sorted(found, reverse=True)[: it.k]
        found = [value if value in allowed else 0.0 for value in found]
    decoder = it.decoder.double().tolist()
    out = [b + sum(found[f] / lengths[f] * decoder[f][j] for f in range(len(found))) for j, b in enumerate(bias)]
    if it.hook_name_out:
        skip = [0.0] * len(out) if it.skip is None else (it.skip.double() @ h.double()).tolist()
        return found, [value + s for value, s in zip(out, skip, strict=True)]
    return found, [value * scale + shift for value in out]


FORMS = {
    **{kind: {"kind": kind} for kind in KINDS},
    "layer norm": {"normalise": "layer_norm"},
    "constant norm": {"normalise": "constant_norm_rescale", "kind": "gated"},
    "b_dec not subtracted": {"subtract": False},
    "topk by length": {"kind": "topk", "by_length": True},
    "transcoder": {"hook_name_out": "blocks.0.hook_mlp_out", "subtract": False, "d_out": 4},
    "jumprelu skip": {
        "kind": "jumprelu",
        "hook_name_out": "blocks.0.hook_mlp_out",
        "subtract": False,
        "d_out": 4,
        "skip": torch.arange(24.0).view(4, 6) / 10,
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_each_kind_equals_its_formula_before_and_after_its_folder(form, tmp_path) -> None:
    it = drawn(**FORMS[form])
    h = torch.randn(7, D, generator=torch.Generator().manual_seed(1))
    for dictionary in (it, load_dictionary(save_dictionary(it, tmp_path / "dictionary"))):
        features, made = dictionary.encode(h), dictionary.reconstruct(h)
        for row in range(len(h)):
            wanted, out = one_by_one(it, h[row])
            torch.testing.assert_close(features[row].tolist(), wanted, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(made[row].tolist(), out, atol=1e-5, rtol=1e-5)
    assert 0 < int((features > 0).sum()) < features.numel()


def test_older_configurations_are_read(tmp_path) -> None:
    """Before SAELens 6: the hook at the top level, topk as an activation function, no architecture."""
    it = drawn("topk")
    folder = save_dictionary(it, tmp_path / "old")
    old = {"d_in": D, "d_sae": F, "hook_point": POST, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}
    (folder / "cfg.json").write_text(json.dumps(old))
    h = torch.randn(4, D)
    read = load_dictionary(folder)
    assert read.hook_name == POST
    torch.testing.assert_close(read.encode(h), it.encode(h))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "temporal"}, "its architecture is 'temporal', but known are standard, topk"),
        ({"normalize_activations": "expected_average_only_in"}, "fold the factor into the weights"),
        ({"normalize_activations": "covariance_whitening"}, "normalize_activations is 'covariance_whitening'"),
        ({"reshape_activations": "hook_z"}, "reshape_activations is 'hook_z'"),
        ({"activation_fn": "tanh-relu"}, "activation_fn is 'tanh-relu'"),
        ({"d_sae": 10}, r"W_enc must have shape \(6, 10\), got \(6, 9\)"),
        ({"d_in": None}, "W_enc must have shape"),
        ({"metadata": {}}, "hook_name must be the name of an activation point"),
        ({"architecture": "gated"}, "must hold W_enc, W_dec, b_dec, b_gate, b_mag, r_mag"),
        ({"architecture": "topk", "k": 20}, "k must be a whole number from 1 to 9"),
    ],
)
def test_what_is_not_known_is_refused(change, said, tmp_path) -> None:
    folder = save_dictionary(drawn(), tmp_path / "dictionary")
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=said):
        load_dictionary(folder)


def test_damaged_folders_are_refused(tmp_path) -> None:
    folder = save_dictionary(drawn(), tmp_path / "dictionary")
    weights = folder / "sae_weights.safetensors"
    tensors = load_file(weights)
    tensors["W_dec"] = tensors["W_dec"].clone()
    tensors["W_dec"][0, 0] = float("nan")
    save_file(tensors, weights)
    with pytest.raises(ValueError, match="W_dec holds numbers that are not finite"):
        load_dictionary(folder)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be used"):
        load_dictionary(folder)
    with pytest.raises(ValueError, match=r"it has no cfg\.json"):
        load_dictionary(tmp_path)


@pytest.fixture(scope="module")
def model() -> TransformerBridge:
    return make_bridge("gpt2")


def test_a_direction_of_the_dictionary_is_named_and_its_change_explained(model) -> None:
    """One of 64 nearly orthogonal features is written. The sign counts: minus the feature gives a negative cosine."""
    base = drawn(d=32, features=64, seed=5)
    atoms = torch.nn.functional.normalize(base.decoder, dim=-1)
    it = Dictionary("standard", POST, atoms.T, atoms, torch.zeros(32), {"b_enc": torch.full((64,), -0.5)})
    for sign in (1, -1):
        reft = rl.Reft([(rl.Site(POST, "l1"), rl.SteeringVector.of(sign * 8 * atoms[5]))])
        write, change = readouts(model, reft, PROMPTS, methods=["dictionary"], n_null=99, dictionaries=[it])
        assert write.said[0][:2] == ("feature 5", pytest.approx(sign, abs=1e-5))
        assert write.p <= 0.05
        h = torch.stack([model.run_with_cache(rl.encode(model, [p]).tokens)[1][POST][0, -1] for p in PROMPTS])
        gain = (it.encode(h + sign * 8 * atoms[5]) - it.encode(h)).mean(0)
        furthest = int(gain.abs().argmax())
        assert change.said[0][:2] == (f"feature {furthest}", pytest.approx(float(gain[furthest]), abs=1e-4))
        controls = dict(change.controls)
        error = [float((x - it.reconstruct(x)).norm() / x.norm()) for x in h]
        assert controls["reconstruction error, natural states, median"] == pytest.approx(sorted(error)[1], abs=1e-5)
    random = rl.Reft([(rl.Site(POST, "l1"), rl.SteeringVector.of(8 * torch.randn(32)))])
    write, _ = readouts(model, random, PROMPTS, methods=["dictionary"], n_null=99, dictionaries=[it])
    assert abs(write.said[0][1]) < 0.9


def test_a_perfect_dictionary_explains_all_of_a_change_and_knows_the_edited_states(model) -> None:
    signs = torch.cat([torch.eye(32), -torch.eye(32)])
    it = Dictionary("standard", POST, signs.T, signs, torch.zeros(32), {"b_enc": torch.zeros(64)})
    reft = rl.Reft([(rl.Site(POST, "l1"), rl.SteeringVector.of(torch.randn(32)))])
    _, change = readouts(model, reft, PROMPTS, methods=["dictionary"], n_null=19, dictionaries=[it])
    controls = dict(change.controls)
    assert controls["share of the change explained"] == pytest.approx(1, abs=1e-4)
    assert controls["reconstruction error, edited states, median"] == pytest.approx(0, abs=1e-4)


def test_a_site_without_a_dictionary_is_refused(model) -> None:
    reft = rl.Reft([(rl.Site("blocks.1.hook_resid_post", "l1"), rl.SteeringVector.of(torch.ones(32)))])
    with pytest.raises(ValueError, match=r"no dictionary is for L1 resid_post .* got blocks\.0\.hook_resid_post"):
        readouts(model, reft, PROMPTS, methods=["dictionary"], n_null=19, dictionaries=[drawn(d=32)])
    narrow = drawn(hook_name="blocks.1.hook_resid_post")
    with pytest.raises(ValueError, match="rows of width 6"):
        readouts(model, reft, PROMPTS, methods=["dictionary"], n_null=19, dictionaries=[narrow])


def test_a_small_dictionary_is_trained_on_the_model_that_ships() -> None:
    """It reconstructs tokens that it has not seen better than as many random features, or than their mean."""
    from reftlens.benchmark.models import texts

    bridge, prompts = rl.load_bridge("facts-small"), texts(80)
    point = "blocks.2.hook_resid_post"
    made = train_dictionary(bridge, point, prompts[:64], features=256, steps=100)
    reft = rl.Reft([(rl.Site(point, rl.All()), rl.SteeringVector.of(torch.zeros(96)))])
    ((_, h),) = rl.analysis.edited_activations(bridge, reft, rl.encode(bridge, prompts[64:]))

    def error(guess: torch.Tensor) -> float:
        return float((h - guess).square().sum() / (h - h.mean(0)).square().sum())

    rows = torch.nn.functional.normalize(torch.randn(256, 96, generator=torch.Generator().manual_seed(0)), dim=-1)
    random = Dictionary("topk", point, rows.T, rows, h.mean(0), {"b_enc": torch.zeros(256)}, k=8)
    assert error(made.reconstruct(h)) < 0.5 * error(random.reconstruct(h)) < 1
    assert int((made.encode(h) > 0).sum(1).max()) <= 8
