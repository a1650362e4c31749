"""Exports to EasySteer, vllm-lens and TransformerLens's specs: what was written, computed by hand, is the edit's own change."""

from __future__ import annotations

import base64
import builtins
import hashlib
import inspect
import json
from types import FunctionType, SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import AFFINE, PROMPTS, make_edit

import reftlens as rl
from reftlens.interventions import RED, Rescale

POST = "blocks.1.hook_resid_post"
SERVED = [kind for kind in AFFINE if kind not in (RED, Rescale)]


def at(positions, kind=rl.LoReFT, hook=POST) -> rl.Reft:
    return rl.Reft([(rl.Site(hook, positions), make_edit(kind))])


def changed_by(vectors: list[dict], h: torch.Tensor) -> torch.Tensor:
    """EasySteer's formulas, one vector after another: loreft h + P (W h + b - P^T h), direct h + v."""
    for vector in vectors:
        t = {
            name: torch.from_numpy(
                np.frombuffer(base64.b64decode(part["data"]), dtype=np.float32).reshape(part["shape"]).copy()
            )
            for name, part in vector["data"]["tensors"].items()
        }
        if vector["algorithm"] == "loreft":
            P, W, b = (t[name] for name in ("rotate_layer", "learned_source_weight", "learned_source_bias"))
            h = h + vector["scale"] * (h @ W.T + b - h @ P) @ P.T
        else:
            (v,) = t.values()
            h = h + vector["scale"] * v
    return h


@pytest.mark.parametrize("kind", SERVED, ids=lambda kind: kind.__name__)
def test_what_is_written_computes_the_change(kind, tmp_path) -> None:
    reft = at("all", kind)
    h = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    for scale in (1.0, -0.5):
        rl.serving.save_easysteer(reft.scaled(scale), tmp_path / "a.json")
        spec = json.loads((tmp_path / "a.json").read_text())
        assert spec["conflict"] == "sequential"
        with torch.no_grad():
            expected = h + scale * reft[0][1].delta(h)
        assert torch.allclose(changed_by(spec["vectors"], h), expected, atol=1e-5)
    assert not torch.allclose(changed_by(spec["vectors"][:-1], h), expected, atol=1e-3)
    assert all(set(vector) == {"algorithm", "data", "scale", "normalize", "apply"} for vector in spec["vectors"])


def test_lorefts_tensors_are_its_own_and_have_the_digest_of_the_format(tmp_path) -> None:
    reft = at("l1")
    rl.serving.save_easysteer(reft, tmp_path / "a.json")
    ((vector,),) = (json.loads((tmp_path / "a.json").read_text())["vectors"],)
    data, (_, edit) = vector["data"], reft[0]
    assert (data["kind"], data["extra"], data["version"]) == ("reft", {"layer": 1}, 1)
    own = {
        "rotate_layer": edit.R.T,
        "learned_source_weight": edit.source.weight,
        "learned_source_bias": edit.source.bias,
    }
    digest = hashlib.sha256(b"reft:1")
    for name in sorted(own):
        written = np.frombuffer(base64.b64decode(data["tensors"][name]["data"]), dtype=np.float32)
        assert written == pytest.approx(own[name].detach().flatten().numpy(), abs=1e-6)
        digest.update(name.encode() + str(tuple(own[name].shape)).encode() + written.tobytes())
    digest.update(b"layer=1")
    assert data["sha256"] == digest.hexdigest()


def picked(clause: dict, n: int) -> set[int]:
    """The prompt tokens of a clause as EasySteer's guide defines them."""
    found: dict[str, set[int]] = {"": set(), "exclude_": set()}
    for key, value in clause.items():
        if key.startswith("generation"):
            continue
        part = found["exclude_" if key.startswith("exclude_") else ""]
        if key == "prompt":
            part |= set(range(n))
        elif key.endswith("window"):
            start, stop = value
            part |= set(range(n)[start:stop])
        else:
            part |= {min(place, n - 1) if place >= 0 else n + place for place in value if place >= -n}
    return found[""] - found["exclude_"]


RULES = {
    "all": {"prompt": "all"},
    "f3": {"prompt_window": [0, 3]},
    "l2": {"prompt_window": [-2, None]},
    rl.First(2) | rl.Last(3): {"prompt_window": [-3, None], "prompt_positions": [0, 1]},
    rl.At(-2) | rl.At(1): {"prompt_positions": [-2, 1]},
    rl.Last(1) | rl.Generated(): {"generation": "all", "prompt_window": [-1, None]},
    rl.All() - rl.First(1): {"prompt": "all", "exclude_prompt_window": [0, 1]},
    rl.Generated(): {"generation": "all"},
}


@pytest.mark.filterwarnings("ignore:in a prompt of fewer than")
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_positions_are_clauses_and_come_back(rule, tmp_path) -> None:
    reft = at(rule, rl.SteeringVector)
    rl.serving.save_easysteer(reft, tmp_path / "a.json")
    (vector,) = json.loads((tmp_path / "a.json").read_text())["vectors"]
    assert vector["apply"] == RULES[rule]
    back = rl.serving.load_easysteer(tmp_path / "a.json").sites[0].positions
    for n in range(2, 9):
        if n < 6 and isinstance(rule, str):
            continue  # f3 takes at most half of a short prompt, which the warning is about
        mask = torch.ones(1, n, dtype=torch.bool)
        expected = reft.sites[0].positions.mask(rl.Prompts(mask))[0] if rule != rl.Generated() else torch.zeros(n)
        assert picked(vector["apply"], n) == set(expected.nonzero()[:, 0].tolist())
        if rule != rl.Generated():
            assert torch.equal(back.mask(rl.Prompts(mask))[0], expected)
    assert back.generated == reft.sites[0].positions.generated


def test_halves_warn_and_what_easysteer_cannot_do_is_refused(tmp_path) -> None:
    with pytest.warns(UserWarning, match="in a prompt of fewer than 10 tokens"):
        rl.serving.save_easysteer(at("l5"), tmp_path / "a.json")
    for reft, message in (
        (at(rl.Span("the")), "no clause for Span"),
        (at((rl.All() - rl.First(1)) | rl.Last(1)), "no clause for"),
        (at("l1", RED), "a factor for each coordinate"),
        (at("l1", rl.ReFTr1), "depends on other tokens|is not"),
        (at("l1", hook="blocks.1.hook_mlp_out"), "only the residual stream after a block"),
        (at("l1", hook="blocks.0.hook_resid_pre"), "only the residual stream after a block"),
    ):
        with pytest.raises(ValueError, match=message):
            rl.serving.save_easysteer(reft, tmp_path / "b.json")
    assert not (tmp_path / "b.json").exists()


DAMAGE = (
    (lambda spec: spec["vectors"][0]["data"].update(sha256="0"), "their SHA-256 differs"),
    (lambda spec: spec["vectors"][1].update(algorithm="erase"), "'erase' has no edit here"),
    (lambda spec: spec.update(conflict="priority"), "exclude each other"),
    (lambda spec: spec.pop("vectors"), "is not a steering spec: KeyError"),
    (lambda spec: spec["vectors"][0]["apply"].update(prompt_tokens=[3]), "no rule here selects prompt_tokens"),
)


def test_a_spec_that_is_read_runs_like_the_edit(gpt2, tmp_path) -> None:
    reft = rl.Reft(
        [
            (rl.Site(POST, rl.Last(2)), make_edit(rl.LoReFT)),
            (rl.Site("blocks.1.hook_resid_pre", rl.All()), make_edit(rl.SteeringVector)),
        ],
        names=["a", "b"],
        scales={"a": 0.5},
    )
    rl.serving.save_easysteer(reft, tmp_path / "a.json")
    back = rl.serving.load_easysteer(tmp_path / "a.json")
    assert [site.hook_name for site in back.sites] == [POST, "blocks.0.hook_resid_post"]
    batch = rl.encode(gpt2, PROMPTS)
    one, two = (
        gpt2.run_with_hooks(batch.tokens, fwd_hooks=each.fwd_hooks(batch), attention_mask=batch.attention_mask)
        for each in (reft, back)
    )
    assert torch.allclose(one, two, atol=1e-5)
    for number, (change, message) in enumerate(DAMAGE):
        spec = json.loads((tmp_path / "a.json").read_text())
        change(spec)
        (tmp_path / f"{number}.json").write_text(json.dumps(spec))
        with pytest.raises(ValueError, match=message):
            rl.serving.load_easysteer(tmp_path / f"{number}.json")


@pytest.mark.parametrize("kind", AFFINE, ids=lambda kind: kind.__name__)
def test_hooks_of_vllm_lens_change_what_the_edit_changes_however_the_prompt_is_cut(gpt2, kind) -> None:
    """Rows in steps as vLLM gives them: parts of a prompt, then single generated tokens."""
    reft = at(rl.First(1) | rl.Last(2) | rl.Generated(), kind).scaled(0.7)
    batch = rl.encode(gpt2, [PROMPTS[2]])
    (hook,) = rl.serving.vllm_lens_hooks(reft, batch, hook=SimpleNamespace)
    assert hook.layer_indices == [1]
    # Only its own values: the server needs no import of this package.
    plain = inspect.unwrap(hook.fn)
    fn = FunctionType(plain.__code__, {"__builtins__": builtins}, closure=plain.__closure__)
    n = batch.tokens.shape[1]
    h = torch.randn(n + 3, 32, generator=torch.Generator().manual_seed(0))
    (edit,) = reft.edits(batch)
    wanted = torch.cat([edit.mask[0], torch.ones(3, dtype=torch.bool)])
    with torch.no_grad():
        expected = torch.where(wanted[:, None], h + 0.7 * reft[0][1].delta(h), h)
        for cuts in ((n,), (2, n), (1, 3, n - 1, n)):
            context = SimpleNamespace(saved={})
            ends = [*cuts, n + 1, n + 2, n + 3]
            found = [fn(context, h[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
            assert torch.allclose(torch.cat(found), expected, atol=1e-5)
    assert not torch.allclose(expected, h)
    assert found[0].dtype == fn(SimpleNamespace(saved={}), h[:2].bfloat16()).float().dtype
    with pytest.raises(ValueError, match="one prompt, got a batch of 3"):
        rl.serving.vllm_lens_hooks(reft, rl.encode(gpt2, PROMPTS))


def test_specs_of_transformer_lens_add_the_vector_at_the_tokens(gpt2) -> None:
    from transformer_lens.model_bridge.sources.inspect.intervention import build_interventions

    reft = at(rl.Last(2), rl.SteeringVector).scaled(2.0)
    batch = rl.encode(gpt2, PROMPTS[:1])
    specs = rl.serving.intervention_specs(reft, batch)
    built = build_interventions(specs, frozenset(f"blocks.{layer}.hook_out" for layer in range(3)))
    assert list(built) == ["1:resid_post"]

    def add(h, hook):
        (spec,) = built.values()
        h = h.clone()
        h[:, spec["pos"]] += torch.tensor(spec["value"])
        return h

    by_spec = gpt2.run_with_hooks(batch.tokens, fwd_hooks=[("blocks.1.hook_out", add)])
    assert torch.allclose(by_spec, gpt2.run_with_hooks(batch.tokens, fwd_hooks=reft.fwd_hooks(batch)), atol=1e-5)
    assert not torch.allclose(by_spec, gpt2(batch.tokens))
    assert "pos" not in rl.serving.intervention_specs(at("all", rl.LobiReFT), batch)["blocks.1.hook_out"]
    with pytest.raises(ValueError, match="reads the activation"):
        rl.serving.intervention_specs(at("l1"), batch)
    twice = rl.Reft([*at("l1", rl.SteeringVector), *at("f1", rl.SteeringVector, "blocks.2.hook_resid_pre")])
    with pytest.raises(ValueError, match="two edits act after block 1"):
        rl.serving.intervention_specs(twice, batch)
