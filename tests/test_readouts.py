"""What several methods say about the vectors of an edit: each against plain hooks or brute force, and one correction for all."""

from __future__ import annotations

import pytest
import torch
from conftest import PROMPTS, make_bridge
from made import made_operator
from transformer_lens.model_bridge import TransformerBridge

import reftlens as rl
from reftlens.analysis import decompose, read_directions, readouts, top_contexts
from reftlens.analysis.readers.correction import Scored, corrected
from reftlens.analysis.readers.vectors import Look, turned_sets
from reftlens.bridge import fit_lens, lens_layer
from reftlens.results import Meaning

POST = "blocks.0.hook_resid_post"
LAST = "blocks.2.hook_resid_post"
SHORT = ["The weaver speaks", "The tower"]
N_NULL = 19


@pytest.fixture(scope="module")
def model() -> TransformerBridge:
    return make_bridge("gpt2")


@pytest.fixture(scope="module")
def reft() -> rl.Reft:
    """Two directions, one of which reads; the change differs from token to token."""
    return rl.analysis.untrained(rl.Reft([(rl.Site(POST, "l1"), rl.DiReFT(32, 2))]), seed=3).scaled(4.0)


def said(found: list[Meaning], method: str, looked_at: str) -> dict[str, float]:
    (meaning,) = [m for m in found if (m.method, m.looked_at) == (method, looked_at)]
    return {name: reading for name, reading, *_ in meaning.said}


def last_states(model, reft, prompts=PROMPTS) -> tuple[torch.Tensor, torch.Tensor]:
    """The activations at the last tokens, and their change."""
    pairs = []
    for prompt in prompts:
        _, cache = model.run_with_cache(rl.encode(model, [prompt]).tokens)
        pairs.append(cache[POST][0, -1])
    h = torch.stack(pairs)
    ((_, edit),) = reft
    return h, reft.scales.get("edit", 1.0) * edit.delta(h).detach()


def test_the_direct_readout_is_that_of_read_directions(model, reft) -> None:
    found = readouts(model, reft, PROMPTS, methods=["direct"], n_null=N_NULL, top=320)
    (operator,) = decompose(model, reft, PROMPTS)
    for index, other in enumerate(read_directions(model, operator, PROMPTS, n_null=N_NULL)):
        mine = said(found, "direct", f"write {index}")
        for token, change in (*other.promoted, *other.suppressed):
            assert mine[token] == pytest.approx(change, abs=1e-5)
    h, delta = last_states(model, reft)
    lens = model.unembed(model.ln_final(h + delta)) - model.unembed(model.ln_final(h))
    mine = said(found, "direct", "change")
    labels = rl.str_tokens(model, torch.arange(320))
    torch.testing.assert_close(torch.tensor([mine[label] for label in labels]), lens.mean(0), atol=1e-5, rtol=1e-4)


def test_contexts_are_those_of_top_contexts(model, reft) -> None:
    found = readouts(model, reft, PROMPTS, methods=["contexts"], n_null=N_NULL, top=3)
    other = top_contexts(model, reft, decompose(model, reft, PROMPTS), PROMPTS, top=3, n_null=N_NULL)
    assert len(found) == len([item for item in other if item.contexts]) == 2
    for mine, theirs in zip(found, other, strict=True):
        assert {name: pytest.approx(z) for name, z, *_ in mine.said} == {c.marked(): c.z for c in theirs.contexts}


def brute_force(model, prompt: str, layer: int, skip: int) -> torch.Tensor:
    """The averaged Jacobian of one prompt, from the whole Jacobian of the last residuals in all the residuals at a layer."""
    tokens = model.to_tokens(prompt)
    last = model.hook_dict[LAST].name
    _, cache = model.run_with_cache(tokens)
    there = cache[f"blocks.{layer}.hook_out"]

    def after(resid: torch.Tensor) -> torch.Tensor:
        kept = []
        hooks = [(f"blocks.{layer}.hook_out", lambda h, hook: resid), (last, lambda h, hook: kept.append(h))]
        model.run_with_hooks(tokens, fwd_hooks=hooks)
        return kept[0]

    whole = torch.autograd.functional.jacobian(after, there)[0, :, :, 0]  # target pos, d, source pos, d
    valid = slice(skip, tokens.shape[1] - 1)
    return whole[valid, :, valid].sum(dim=0).mean(dim=1)


def test_the_jacobian_readout_equals_brute_force(model, reft) -> None:
    shortest = min(model.to_tokens(prompt).shape[1] for prompt in SHORT)
    J = torch.stack([brute_force(model, prompt, 0, shortest // 4) for prompt in SHORT]).mean(dim=0)
    lens = fit_lens(model, SHORT, [0])
    torch.testing.assert_close(lens.jacobians[0], J, atol=1e-5, rtol=1e-5)
    found = readouts(model, reft, SHORT, methods=["jacobian"], n_null=N_NULL, top=320)
    labels = rl.str_tokens(model, torch.arange(320))

    def slope(h: torch.Tensor, push: torch.Tensor) -> torch.Tensor:
        """By differences in float64, from the definition of LayerNorm."""
        norm, unembed = model.original_model.transformer.ln_f, model.W_U.detach().double()

        def read(x: torch.Tensor) -> torch.Tensor:
            x = x - x.mean(-1, keepdim=True)
            normed = x / (x.square().mean(-1, keepdim=True) + model.cfg.eps).sqrt()
            return normed * norm.weight.detach().double() @ unembed

        h, push = h.double(), push.double()
        return ((read(h + 1e-5 * push) - read(h - 1e-5 * push)) / 2e-5).mean(0).float()

    (operator,) = decompose(model, reft, SHORT)
    ends = torch.stack([model.run_with_cache(rl.encode(model, [p]).tokens)[1][LAST][0, -1] for p in SHORT])
    wanted = slope(ends, (operator.spectrum[0] * J @ operator.write[0]).expand_as(ends))
    mine = said(found, "jacobian", "write 0")
    torch.testing.assert_close(torch.tensor([mine[label] for label in labels]), wanted, atol=1e-5, rtol=1e-5)
    h, delta = last_states(model, reft, SHORT)
    mine = said(found, "jacobian", "change")
    torch.testing.assert_close(
        torch.tensor([mine[label] for label in labels]), slope(h @ J.T, delta @ J.T), atol=1e-5, rtol=1e-5
    )


def test_the_control_of_the_jacobian_names_the_token_that_it_asks_about(model) -> None:
    """With one name only, the furthest is named, and the control is about the token with the largest reading."""
    differ = 0
    for seed in range(2):
        vector = torch.randn(32, generator=torch.Generator().manual_seed(seed))
        reft = rl.Reft([(rl.Site(POST, "l1"), rl.SteeringVector.of(vector))])
        lens = fit_lens(model, SHORT, [0, 1])
        one, every = (
            readouts(model, reft, SHORT, methods=["jacobian"], n_null=N_NULL, lens=lens, top=top) for top in (1, 320)
        )
        for alone, whole in zip(one, every, strict=True):
            largest = max(whole.said, key=lambda said: abs(said[1]))[0]
            assert alone.controls[0][0].startswith(f"{largest!r} through")
            differ += alone.said[0][0] != largest
    assert differ, "no case can tell the two apart"


def test_the_lens_of_the_last_block_is_the_slope_of_the_direct_readout(model) -> None:
    vector = 1e-3 * torch.randn(32, generator=torch.Generator().manual_seed(0))
    reft = rl.Reft([(rl.Site(LAST, "l1"), rl.SteeringVector.of(vector))])
    found = readouts(model, reft, PROMPTS, methods=["direct", "jacobian"], n_null=N_NULL, top=320)
    direct, slope = said(found, "direct", "change"), said(found, "jacobian", "change")
    assert {name: pytest.approx(reading, abs=2e-6) for name, reading in slope.items()} == direct


def test_points_between_blocks_have_a_lens_and_others_do_not(model) -> None:
    assert lens_layer(model, "blocks.0.hook_resid_post") == lens_layer(model, "blocks.1.hook_resid_pre") == 0
    for name in ("blocks.0.hook_resid_pre", "blocks.1.hook_attn_out", "blocks.1.hook_resid_mid"):
        with pytest.raises(ValueError, match="reads outputs of blocks"):
            lens_layer(model, name)


def test_a_lens_is_read_from_a_file_and_one_of_another_model_is_refused(model, reft, tmp_path) -> None:
    from transformer_lens.tools.analysis.jacobian_lens import JacobianLens

    lens = fit_lens(model, PROMPTS, [0])
    path = tmp_path / "lens.pt"
    JacobianLens(dict(lens.jacobians), n_prompts=3, d_model=32).save(str(path), dtype=torch.float32)
    given = readouts(model, reft, PROMPTS, methods=["jacobian"], n_null=N_NULL, lens=path)
    fitted = readouts(model, reft, PROMPTS, methods=["jacobian"], n_null=N_NULL, lens=lens)
    assert [m.said for m in given] == [m.said for m in fitted]
    JacobianLens({0: torch.eye(16)}, n_prompts=3, d_model=16).save(str(path))
    with pytest.raises(ValueError, match="does not fit this model"):
        readouts(model, reft, PROMPTS, methods=["jacobian"], n_null=N_NULL, lens=path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="does not hold a Jacobian lens"):
        readouts(model, reft, PROMPTS, methods=["jacobian"], n_null=N_NULL, lens=path)


@pytest.mark.parametrize("point", [POST, "blocks.1.hook_resid_mid"])
def test_the_patchscope_equals_plain_hooks(model, point) -> None:
    vector = 3 * torch.randn(32, generator=torch.Generator().manual_seed(0))
    reft = rl.Reft([(rl.Site(point, "l1"), rl.SteeringVector.of(vector))])
    ask = "The weaver speaks"
    batch = rl.encode(model, [ask])
    found = readouts(model, reft, PROMPTS, methods=["patchscope"], n_null=N_NULL, top=320, inspect=ask)
    site = rl.Reft([(rl.Site(point, "l1"), rl.SteeringVector.of(vector))])
    with site.hooks(model, batch.prompt_mask):
        added = model(batch.tokens)[0, -1]
    wanted = added - model(batch.tokens)[0, -1]
    labels = rl.str_tokens(model, torch.arange(320))
    mine = said(found, "patchscope", "write 0")
    torch.testing.assert_close(torch.tensor([mine[label] for label in labels]), wanted, atol=1e-4, rtol=1e-4)
    if point != POST:
        return
    h, delta = last_states(model, reft)

    def decoded(state: torch.Tensor) -> torch.Tensor:
        def put(resid, hook):
            return torch.cat([resid[:, :-1], state[None, None]], dim=1)

        return model.run_with_hooks(batch.tokens, fwd_hooks=[(point, put)])[0, -1]

    change = torch.stack([decoded(a + b) - decoded(a) for a, b in zip(h, delta, strict=True)]).mean(0)
    mine = said(found, "patchscope", "change")
    torch.testing.assert_close(torch.tensor([mine[label] for label in labels]), change, atol=1e-4, rtol=1e-4)


def test_random_changes_keep_lengths_and_angles() -> None:
    generator = torch.Generator().manual_seed(0)
    change = torch.randn(5, 2, generator=generator) @ torch.randn(2, 12, generator=generator)
    sets = turned_sets(change, 8, generator)
    assert torch.equal(sets[0], change)
    for one in sets:
        torch.testing.assert_close(one @ one.T, change @ change.T, atol=1e-4, rtol=1e-4)
    assert len({round(float(one[0, 0]), 4) for one in sets}) == 9
    # Uniform: neither sign of a coordinate is preferred.
    assert 0.4 < float((turned_sets(change, 400, generator)[1:, 0, 0] > 0).double().mean()) < 0.6


def test_p_counts_all_names_vectors_and_methods(model, reft) -> None:
    alone = readouts(model, reft, PROMPTS, methods=["direct"], directions=1, n_null=99)
    more = readouts(model, reft, PROMPTS, methods=["direct", "patchscope", "contexts"], n_null=99)
    assert {m.n_looks for m in alone} == {2}
    assert {m.n_looks for m in more} == {8}
    for meaning in more:
        assert all(p <= p_all for *_, p, p_all in meaning.said)
        assert all((abs(score) > meaning.chance) == (p_all <= 0.05) for _, _, score, _, p_all in meaning.said)
        sizes = [reading if meaning.method == "contexts" else abs(reading) for _, reading, *_ in meaning.said]
        assert sizes[:-1] == sorted(sizes[:-1], reverse=True)


def test_p_over_looks_is_exact_whatever_their_tails() -> None:
    """Sets without an effect: bounded, normal and heavy-tailed looks. A large value in a bounded look is found all the same."""
    generator = torch.Generator().manual_seed(0)

    def p(planted: float | None = None) -> list[float]:
        u = torch.rand(3, 40, generator=generator, dtype=torch.float64)
        looks = torch.stack([u[0], torch.special.ndtri(u[1]), 1 / u[2] ** 2])
        if planted is not None:
            looks[0, 0] = planted
        look = Look(0, "write", "write 0", torch.zeros(1, 1, 1))
        scored = [
            Scored("direct", look, ("a",), (float(x[0]),), (float(x[0]),), x, 1, "", two_sided=False) for x in looks
        ]
        found = corrected([made_operator()], scored)
        assert all((m.said[0][2] > m.chance) == (m.p <= 0.05) for m in found)
        return [m.p for m in found]

    alarms = sum(min(p()) <= 0.05 for _ in range(300))
    assert 4 <= alarms <= 26, "5% of 300, give or take three standard errors"
    assert p(planted=3.0)[0] <= 0.05


def test_a_token_that_a_vector_was_made_from_is_found(model) -> None:
    """And a direction that LayerNorm removes says nothing."""
    W = model.W_U.detach().T
    toward = torch.nn.functional.normalize(W[40] - W.mean(0), dim=0)
    reft = rl.Reft([(rl.Site(LAST, "l1"), rl.SteeringVector.of(12 * toward))])
    best = readouts(model, reft, PROMPTS, methods=["direct", "patchscope"], n_null=99, inspect="The")
    (label,) = rl.str_tokens(model, torch.tensor([40]))
    assert all(m.said[0][0] == label and m.p <= 0.05 for m in best)
    nothing = rl.Reft([(rl.Site("blocks.1.hook_resid_post", "l1"), rl.SteeringVector.of(torch.ones(32)))])
    assert all(m.p == 1 for m in readouts(model, nothing, PROMPTS, methods=["direct", "patchscope"], n_null=99))


def test_what_cannot_be_read_is_refused(model, reft) -> None:
    with pytest.raises(ValueError, match="methods must be a list of direct, jacobian"):
        readouts(model, reft, PROMPTS, methods=["jacobean"])
    head = rl.Reft([(rl.Site("blocks.1.attn.hook_z", "l1", head=0), rl.SteeringVector.of(torch.ones(8)))])
    for method in ("direct", "jacobian", "patchscope"):
        with pytest.raises(ValueError, match="vectors of the residual stream"):
            readouts(model, head, PROMPTS, methods=[method], n_null=N_NULL)
    batch = rl.encode(model, PROMPTS)
    nameless = rl.Batch(batch.tokens, batch.attention_mask, batch.prompt_mask, batch.labels)
    with pytest.raises(ValueError, match="these batches have none: pass lens="):
        readouts(model, reft, nameless, methods=["jacobian"], n_null=N_NULL)
