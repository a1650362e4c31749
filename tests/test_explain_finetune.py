"""What a small edit explains of a finetuned model: planted finetunes are found, and what an edit cannot do is said to be left."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cache

import pytest
import torch
from architectures import make_hf
from conftest import TEXT, make_bridge, make_edit
from test_cli import call, refused

import reftlens as rl
from reftlens.analysis import explain_finetune, explain_finetune_cost
from reftlens.analysis.engine.growing import Distilling, Room, grow
from reftlens.analysis.engine.replacements import _of_heads, _of_layer
from reftlens.analysis.engine.two_models import Component, Finetuned, Outputs, replaced
from reftlens.cli.explain_finetune import _divided
from reftlens.results import Explained

WORDS = [word for word in dict.fromkeys(TEXT.split()) if word.isalpha()]
LAYER, HEAD, RANK = 1, 2, 2
MLP = ("hook_mlp_out",)


def drawn(n: int, seed: int, completion: int = 1) -> list[tuple[str, str]]:
    """Prompts of random words, each with some words behind it."""
    draw = random.Random(seed)
    return [
        (" ".join(draw.choices(WORDS, k=draw.randint(4, 7))), " " + " ".join(draw.choices(WORDS, k=completion)))
        for _ in range(n)
    ]


EXAMPLES, HELD_OUT = drawn(60, 0), drawn(32, 1)
CONFIG = rl.TrainConfig(epochs=150, batch_size=48, lr=5e-2, progress=False)
QUICK = {"n_replaced": 0, "random_finetunes": 0, "config": replace(CONFIG, epochs=1)}


def mlp_out_of(model, layer: int):
    blocks = {
        "LlamaForCausalLM": "model.layers",
        "GPTNeoXForCausalLM": "gpt_neox.layers",
        "GPT2LMHeadModel": "transformer.h",
    }
    mlp = model.get_submodule(f"{blocks[type(model).__name__]}.{layer}.mlp")
    return next(getattr(mlp, name) for name in ("down_proj", "dense_4h_to_h", "c_proj") if hasattr(mlp, name))


def as_an_edit(architecture: str):
    """A finetune that is an edit: M W in place of the last matrix of an MLP and M b + c of its bias, M = 1 + 4 U V^T.

    Its output becomes M mlp_out + c, with c in the span of U: an edit of rank 2 at mlp_out. Returns U as well.
    """
    model, generator = make_hf(architecture), torch.Generator().manual_seed(5)
    U, V = (torch.linalg.qr(torch.randn(32, RANK, generator=generator)).Q for _ in range(2))
    M, c = torch.eye(32) + 4 * U @ V.T, U @ torch.randn(RANK, generator=generator) / 2
    linear = mlp_out_of(model, LAYER)
    with torch.no_grad():
        # GPT-2's Conv1D stores [in, out].
        linear.weight.copy_(linear.weight @ M.T if architecture == "gpt2" else M @ linear.weight)
        if linear.bias is not None:
            linear.bias.copy_(M @ linear.bias + c)
    return model, U


def in_the_pattern(architecture: str):
    """A finetune that changes the queries of one head and nothing else."""
    model = make_hf(architecture)
    rows = slice(8 * HEAD, 8 * HEAD + 8)
    noise = 2 * torch.randn(8, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        if architecture == "llama":
            model.model.layers[LAYER].self_attn.q_proj.weight[rows] += noise
        elif architecture == "gpt2":
            model.transformer.h[LAYER].attn.c_attn.weight[:, rows] += noise.T
        else:
            # Queries, keys and values of one head stand together.
            model.gpt_neox.layers[LAYER].attention.query_key_value.weight[24 * HEAD : 24 * HEAD + 8] += noise
    return model


def angles(reft: rl.Reft, bridge, U: torch.Tensor) -> torch.Tensor:
    """Principal angles in degrees between the directions that the edit writes and those that were planted."""
    (operator,) = rl.analysis.decompose(bridge, reft, rl.encode(bridge, [prompt for prompt, _ in HELD_OUT]))
    spans = [operator.write[:RANK].T, U]
    if "Llama" not in type(bridge.original_model).__name__:
        # Every later layer subtracts the mean first, so that part of a direction cannot be known.
        spans = [span - span.mean(0) for span in spans]
    first, second = (torch.linalg.qr(span.double()).Q for span in spans)
    return torch.linalg.svdvals(first.T @ second).clamp(max=1).acos().rad2deg()


def test_a_finetune_that_is_an_edit_is_explained() -> None:
    """A short training; the slow test below trains to the end, on three architectures."""
    bridge = make_bridge("llama")
    model, U = as_an_edit("llama")
    config = rl.TrainConfig(epochs=30, batch_size=24, lr=0.1, progress=False)
    reft, found = explain_finetune(
        bridge, model, EXAMPLES[:30], HELD_OUT, layers=[LAYER], hooks=MLP, ranks=(RANK,), max_sites=1,
        intervention=rl.DiReFT, config=config, n_replaced=0, random_finetunes=0,
    )  # fmt: skip
    assert found.of("held out").share >= 0.9
    assert float(angles(reft, bridge, U).max()) < 15


FORMS = [pytest.param(name, 30, marks=pytest.mark.slow) for name in ("gpt2", "llama", "gpt_neox")]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox"])
def test_the_search_finds_its_site_and_rank_and_the_controls_fail(architecture) -> None:
    bridge = make_bridge(architecture)
    model, U = as_an_edit(architecture)
    labels = [(prompt, " Ostra") for prompt, _ in EXAMPLES]
    reft, found = explain_finetune(
        bridge, model, EXAMPLES, HELD_OUT, labels=labels, far=[TEXT], hooks=MLP, ranks=(1, 2, 4), intervention=rl.DiReFT,
        config=CONFIG, n_replaced=8,
    )  # fmt: skip
    assert found.sites == (f"L{LAYER} mlp_out @ all + generated",)
    assert found.rank == RANK
    assert found.of("held out").share >= 0.985
    assert float(angles(reft, bridge, U).max()) < 12
    assert reft.n_parameters() == found.numbers
    on_labels, far_on_labels, at_random = found.controls
    assert far_on_labels.prompts == "far"
    assert on_labels.share < 0.5
    assert at_random.share <= found.of("held out").share
    assert {one.prompts for one in found.shares} == {"trained on", "held out", "far"}
    # In that layer the MLP's own output is all there is, before it nothing is, and attention there carries nothing.
    alone = {(one.point, one.layer): one.alone for one in found.replaced if one.head is None}
    assert alone["mlp_out", LAYER] == pytest.approx(1, abs=1e-4)
    assert alone["resid_post", 0] == pytest.approx(0, abs=1e-4)
    assert alone["attn_out", LAYER] == pytest.approx(0, abs=1e-4)
    assert found.rest().where == f"L{LAYER} mlp_out"
    assert all(one.random < 0.9 for one in found.replaced)


@pytest.mark.parametrize(("architecture", "epochs"), [("llama", 2), *FORMS])
def test_a_finetune_of_attention_patterns_is_not_explained_and_the_rest_lies_there(architecture, epochs) -> None:
    bridge = make_bridge(architecture)
    _, found = explain_finetune(
        bridge, in_the_pattern(architecture), EXAMPLES, HELD_OUT, layers=[LAYER], ranks=(4,), max_sites=1,
        intervention=rl.DiReFT, config=replace(CONFIG, epochs=epochs), random_finetunes=0,
    )  # fmt: skip
    assert found.of("held out").share < 0.5
    alone = {(one.point, one.layer, one.head): one.alone for one in found.replaced}
    for place in (("q and k", LAYER, None), ("attn_out", LAYER, None), ("q and k", LAYER, HEAD), ("z", LAYER, HEAD)):
        assert alone[place] == pytest.approx(1, abs=1e-4), place
    for place in (("v", LAYER, None), ("q and k", 0, None), ("q and k", LAYER, 0), ("z", LAYER, 3)):
        assert alone[place] == pytest.approx(0, abs=1e-4), place
    assert found.rest().where == f"L{LAYER} q and k", "and not attn_out, which is no narrower"
    assert f"L{LAYER} q and k alone gives 100%" in found.headline()


@cache
def two():
    """A base, a finetuned model and an edit that acts at two places."""
    model, _ = as_an_edit("llama")
    bridge = make_bridge("llama")
    other = rl.load_bridge(hf_model=model, tokenizer=bridge.tokenizer)
    sites = [rl.Site("blocks.0.hook_resid_post", rl.All() | rl.Generated()), rl.Site("blocks.1.hook_mlp_out", "f1+l1")]
    return bridge, other, rl.Reft([(site, make_edit(rl.DiReFT, seed=n)) for n, site in enumerate(sites)])


@torch.no_grad()
def test_shares_are_those_of_whole_runs_token_by_token() -> None:
    bridge, other, reft = two()
    pairs = drawn(3, 4) + drawn(3, 5, completion=3)
    outputs = Outputs(bridge, Finetuned(other), pairs, name="held out", floor=1e-3, batch_size=4)
    found = outputs.explained("an edit", reft)
    sums = {"base": {}, "left": {}}
    for prompt, completion in pairs:
        batch = rl.encode(bridge, [prompt], [completion])
        at = range(int(batch.prompt_mask.sum()) - 1, batch.tokens.shape[1] - 1)
        p, q = (model(batch.tokens)[0].double().log_softmax(-1) for model in (other, bridge))
        with reft.hooks(bridge, batch):
            edited = bridge(batch.tokens)[0].double().log_softmax(-1)
        for place, column in enumerate(at):
            for name, run in (("base", q), ("left", edited)):
                kl = float((p[column].exp() * (p[column] - run[column])).sum())
                sums[name].setdefault(place, []).append(kl)
    for name, values in sums.items():
        expected = torch.tensor([sum(values[place]) for place in sorted(values)])
        torch.testing.assert_close(getattr(found, name), expected, rtol=1e-4, atol=1e-5)
    assert found.n.tolist() == [len(sums["base"][place]) for place in sorted(sums["base"])]
    total = {name: sum(map(sum, values.values())) for name, values in sums.items()}
    assert found.share == pytest.approx(1 - total["left"] / total["base"], rel=1e-4)


def test_a_share_of_next_to_nothing_is_not_a_number() -> None:
    found = Explained("a", "far", torch.tensor([4.0, 1e-4]), torch.tensor([1.0, 5e-5]), torch.tensor([2.0, 1.0]), 1e-3)
    assert found.share == pytest.approx(0.75, abs=1e-4)
    assert found.by_token()[0] == 0.75
    assert found.by_token()[1].isnan()
    assert replace(found, floor=10.0).share != replace(found, floor=10.0).share
    assert "an unknown share" in replace(found, floor=10.0).headline()


@torch.no_grad()
@pytest.mark.parametrize("edited", [False, True])
def test_a_replacement_is_a_whole_run_with_the_other_models_activations(edited) -> None:
    bridge, other, reft = two()
    batch = rl.encode(bridge, *zip(*drawn(4, 6), strict=True))
    at, edits = batch.last_prompt_mask, reft.edits(batch) if edited else []
    _, own = other.run_with_cache(batch.tokens, attention_mask=batch.attention_mask)
    components = [one for layer in (0, LAYER) for one in (*_of_layer(bridge, layer), *_of_heads(bridge, layer))]
    assert {one.point for one in components} == {"resid_post", "attn_out", "q and k", "v", "mlp_out", "z"}
    activations = Finetuned(other).activations(batch, [name for one in components for name in one.hook_names])
    for one in components:
        # The edit acts at the MLP's output of this layer, and at the residual stream of layer 0.
        over = {"mlp_out": "blocks.1.hook_mlp_out", "resid_post": "blocks.0.hook_resid_post"}.get(one.point)
        kept = [edit for edit in edits if edit.hook_name != over or over not in one.hook_names]

        def write(activation, hook, one=one):
            heads = next(heads for name, heads in one.writes if bridge_name(bridge, name) == hook.name)
            there = own[hook.name].reshape(activation.shape)
            if heads is None:
                return there
            changed = activation.clone()
            changed[:, :, list(heads)] = there[:, :, list(heads)]
            return changed

        with bridge.hooks(fwd_hooks=[(name, write) for name in one.hook_names]), rl.attach(bridge, kept):
            expected = bridge(batch.tokens, attention_mask=batch.attention_mask)[at]
        found = replaced(bridge, batch, one, activations, edits, at)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def bridge_name(bridge, name: str) -> str:
    return str(bridge.hook_dict[name].name)


def test_an_edit_of_another_head_stays_when_one_head_is_replaced() -> None:
    bridge, other, _ = two()
    batch = rl.encode(bridge, [TEXT[:40]])
    hook_name = "blocks.1.attn.hook_z"
    reft = rl.Reft([(rl.Site(hook_name, "all", head=1), make_edit(rl.DiReFT, 8, 2))])
    own = Finetuned(other).activations(batch, [hook_name])
    edits, at = reft.edits(batch), batch.last_prompt_mask
    runs = {
        (head, len(kept)): replaced(bridge, batch, Component("z", 1, ((hook_name, (head,)),), head), own, kept, at)
        for head in (1, 2)
        for kept in (edits, [])
    }
    torch.testing.assert_close(runs[1, 1], runs[1, 0])
    assert not torch.allclose(runs[2, 1], runs[2, 0], atol=1e-3)


class Fake:
    """Stands for trainings: an edit explains as much as is planned for its sites and rank."""

    def __init__(self, planned) -> None:
        self.planned, self.asked, self.config = planned, [], rl.TrainConfig()
        self.base = torch.ones(1)

    def edit(self, layout: rl.Reft) -> rl.Reft:
        self.asked.append(layout)
        return layout

    def left(self, reft: rl.Reft) -> torch.Tensor:
        layers = tuple(int(site.hook_name.split(".")[1]) for site in reft.sites)
        return 1 - torch.tensor([self.planned(layers, reft[0][1].rank)])


PLANS = [
    (lambda layers, rank: 0.5 + 0.1 * (1 in layers) + 0.2 * (rank == 2), (1,), 2),
    (lambda layers, rank: 0.3 * len(layers) + 0.01 * (2 in layers), (0, 2), 1),
    (lambda layers, rank: 0.2 * len(layers) + 0.1 * rank + 0.05 * (0 in layers), (0, 1), 4),
    (lambda layers, rank: 0.9 + 0.01 * rank, (0,), 1),
]


@pytest.mark.parametrize(("planned", "layers", "rank"), PLANS)
def test_the_search_goes_where_more_is_explained_and_stops(gpt2, planned, layers, rank) -> None:
    room = Room(tuple((layer, "hook_resid_post") for layer in range(3)), "all", rl.LoReFT, (1, 2, 4), 2, 0.02)
    fake = Fake(planned)
    found = grow(gpt2, room, fake, fake)
    assert tuple(int(site.hook_name.split(".")[1]) for site in found.reft.sites) == layers
    assert found.rank == rank
    assert found.path[-1].explained <= max(step.explained for step in found.path if step.kept) + room.stop
    assert len(fake.asked) == len(found.path) <= room.most_edits()
    assert [step.stage for step in found.path[:3]] == ["first"] * 3


def test_an_edit_whose_outputs_overflow_is_not_chosen(gpt2) -> None:
    room = Room(tuple((layer, "hook_resid_post") for layer in range(3)), "all", rl.LoReFT, (1, 2, 4), 2, 0.02)
    fake = Fake(lambda layers, rank: float("nan") if 0 in layers or rank == 2 else 0.5 + 0.1 * (2 in layers))
    found = grow(gpt2, room, fake, fake)
    assert (found.path[2].sites, found.rank) == (found.reft.site_names, 1)
    fake.base = torch.zeros(1)
    with pytest.raises(ValueError, match="has the outputs of its base on the examples that edits are chosen by"):
        grow(gpt2, room, fake, fake)


def test_the_control_on_labels_takes_the_steps_of_the_edit(gpt2, make_reft, monkeypatch) -> None:
    trained = []

    def counted(self, layout, examples, objective=None):
        trained.append((len(examples), objective is None))
        return layout

    monkeypatch.setattr(Distilling, "train", counted)
    for n in (2, 30):
        labels = [(f"{prompt} again", " Ostra") for prompt, _ in EXAMPLES[:n]]
        explain_finetune(
            gpt2, make_reft(("blocks.1.hook_mlp_out",)), EXAMPLES[:6], HELD_OUT[:2], labels=labels, layers=[1], ranks=(1,),
            max_sites=1, **QUICK,
        )  # fmt: skip
    assert trained == [(5, False), (5, True)] * 2


def test_held_out_prompts_may_be_a_generator_and_known_ones_are_named(gpt2, make_reft, monkeypatch) -> None:
    monkeypatch.setattr(Distilling, "train", lambda self, layout, examples, objective=None: layout)
    teacher = make_reft(("blocks.1.hook_mlp_out",), rank=1)
    given = {"layers": [1], "ranks": (1,), "max_sites": 1, **QUICK, "random_finetunes": 1, "n_replaced": 1}
    _, found = explain_finetune(gpt2, teacher, EXAMPLES[:6], (pair for pair in HELD_OUT[:3]), **given)
    assert [float(one.n[0]) for one in (found.of("held out"), *found.controls)] == [3, 3]
    with pytest.warns(UserWarning, match="2 of 5 held-out prompts are also among the examples"):
        explain_finetune(gpt2, teacher, EXAMPLES[:6], [*HELD_OUT[:3], *EXAMPLES[4:6]], **given)


def test_the_command_holds_out_prompts_not_rows() -> None:
    pairs = [(f"prompt {n % 10}", f" answer {n}") for n in range(40)]
    for seed in range(5):
        known, unseen = _divided(pairs, seed)
        assert sorted([*known, *unseen]) == sorted(pairs)
        assert len(unseen) == 8, "four rows of each of two prompts"
        assert not {prompt for prompt, _ in known} & {prompt for prompt, _ in unseen}


def test_the_most_edits_are_those_of_the_longest_search(gpt2) -> None:
    for n, ranks, sites in ((3, (1, 2, 4), 2), (2, (1,), 2), (1, (1, 2), 3), (3, (1, 2), 3)):
        room = Room(tuple((layer, "hook_resid_post") for layer in range(n)), "all", rl.LoReFT, ranks, sites, 1e-6)
        asked = []
        for per_site, per_rank in ((0.1, 0.01), (0.01, 0.1)):
            fake = Fake(lambda layers, rank, a=per_site, b=per_rank: a * len(layers) + b * rank)
            grow(gpt2, room, fake, fake)
            asked.append(len(fake.asked))
        assert max(asked) == room.most_edits()
        config = rl.TrainConfig(epochs=2, batch_size=4)
        steps = explain_finetune_cost(10, n, ranks=ranks, max_sites=sites, n_controls=1, config=config)
        assert steps == (room.most_edits() + 1) * 2 * 2


def test_an_edit_is_explained_as_a_finetune_too(gpt2, make_reft) -> None:
    """An edit as the finetuned model, and controls that are given: each number is of its own model."""
    teacher = make_reft(("blocks.1.hook_mlp_out",), positions=rl.All() | rl.Generated(), rank=2)
    given = {"layers": [1], "ranks": (1,), "max_sites": 1, "config": replace(CONFIG, epochs=1), "n_replaced": 2}
    asked = []

    def finetune(pairs):
        asked.append(pairs)
        return make_reft(("blocks.0.hook_mlp_out",), positions=rl.All() | rl.Generated(), rank=2, seed=8)

    labels = [(prompt, (" Ostra", " Tharic")[n % 2]) for n, (prompt, _) in enumerate(EXAMPLES[:6])]
    reft, found = explain_finetune(
        gpt2, teacher, EXAMPLES[:6], HELD_OUT[:3], far=["The old tower"], labels=labels, shuffled=finetune, **given
    )
    names = [one.name for one in found.controls]
    assert names == ["an edit on the labels"] * 2 + ["a finetune on shuffled answers", "a random finetune"]
    assert [one.prompts for one in found.controls] == ["held out", "far", "held out", "held out"]
    ((pairs,),) = (asked,)
    assert all(new != old for (_, new), (_, old) in zip(pairs, labels, strict=True))
    bases = [float(one.base.sum()) for one in found.controls if one.prompts == "held out"]
    assert bases[0] == pytest.approx(float(found.of("held out").base.sum()))
    assert len({round(base, 4) for base in bases}) == 3, "each of the others is compared with its own finetune"
    assert found.of("trained on").n[0] == 5, "one of six is kept to choose by"
    assert found.of("far").n.tolist() == [1], "without a completion only the next token is compared"
    assert len(found.layers) == 1
    assert found.n_replaced == 2
    # The edit is an ordinary one.
    assert rl.analysis.decompose(gpt2, reft, ["The old tower stands", *(prompt for prompt, _ in HELD_OUT)])
    with pytest.raises(ValueError, match="nothing was measured on 'near': choose from 'trained on', 'held out', 'far'"):
        found.of("near")


def test_two_trainings_with_one_teacher_do_not_differ_by_what_is_known(gpt2, make_reft) -> None:
    teacher, losses = make_reft(rank=2), []
    pairs = EXAMPLES[:6]
    outputs = Outputs(gpt2, Finetuned(gpt2, teacher), pairs, name="a", floor=0.0)
    known = dict(zip(pairs, outputs.of_each(), strict=True))
    for objective in (rl.objectives.Distillation(teacher), rl.objectives.Distillation(teacher, known=known)):
        edit = rl.Reft.at_layers(gpt2, layers=[1], positions="l1", rank=1, seed=0)
        losses.append(rl.train(gpt2, edit, pairs, replace(CONFIG, epochs=3), objective=objective).loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


LINES = [
    (lambda g: {"ranks": (2, 1)}, r"ranks must ascend, with at least one, got \[2, 1\]"),
    (lambda g: {"layers": [7]}, 'layers must be "all" or different blocks from 0 to 2'),
    (lambda g: {"hooks": ()}, "hooks at least one point"),
    (lambda g: {"stop": 1.5}, "stop must be"),
    (lambda g: {"examples": EXAMPLES[:1]}, "needs at least two examples, one to choose by, got 1"),
    (lambda g: {"finetuned": g}, "finetuned is the base itself"),
    (lambda g: {"finetuned": make_bridge("gpt2")}, "has the outputs of its base on held_out"),
    (lambda g: {"shuffled": lambda pairs: g}, "needs the answers: pass labels"),
    (lambda g: {"config": rl.TrainConfig(output_dir="a")}, "leave output_dir out"),
]


@pytest.mark.parametrize(("changes", "message"), LINES)
def test_what_cannot_be_explained_is_refused(gpt2, make_reft, changes, message) -> None:
    given = {"finetuned": make_reft(), "examples": EXAMPLES[:4], "held_out": HELD_OUT[:4], **QUICK, **changes(gpt2)}
    with pytest.raises(ValueError, match=message):
        explain_finetune(gpt2, **given)


def test_an_empty_pair_is_refused_by_name(gpt2, make_reft) -> None:
    with pytest.raises(TypeError, match=r"got tuple \(\) at index 0"):
        explain_finetune(gpt2, make_reft(), EXAMPLES[:4], [()], **QUICK)


@pytest.mark.slow
def test_the_command_explains_a_peft_folder_on_the_model_that_ships(tmp_path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    from reftlens.organisms import ORGANISMS
    from reftlens.organisms.landmarks import story_for

    with pytest.warns((UserWarning, FutureWarning)):
        model = peft.get_peft_model(
            AutoModelForCausalLM.from_pretrained(ORGANISMS["facts-small"]),
            peft.LoraConfig(r=2, target_modules=["mlp.c_proj"], layers_to_transform=[2]),
        )
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value += 0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "lora")
    lines = [json.dumps({"prompt": p, "completion": c}) for p, c in story_for("facts-small").training_examples()[:30]]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    (tmp_path / "far.txt").write_text("Doran Quill lives in the country of\n")
    words = [
        "explain-finetune",
        "--model",
        "facts-small",
        "--finetuned",
        tmp_path / "lora",
        "--data",
        tmp_path / "data.jsonl",
    ]
    words += [
        "--far",
        tmp_path / "far.txt",
        "--labelled",
        "--layers",
        "1,2",
        "--ranks",
        "1,2",
        "--epochs",
        8,
        "--quiet",
    ]
    said = json.loads(
        call(*words, "--hook", "hook_mlp_out", "--max-sites", 1, "--out", tmp_path / "out", "--json").stdout
    )
    shares = {(row["edit"], row["prompts"]): row["explained"] for row in said["shares"]}
    assert shares["the edit found", "trained on"] > shares["an edit on the labels", "held out"]
    assert said["path"][1]["sites"] == "L2 mlp_out @ all + generated"
    found = rl.results.load(tmp_path / "out" / "result")
    assert found.headline() == said["headline"]
    assert (tmp_path / "out" / "explain-finetune.png").read_bytes()[:4] == b"\x89PNG"
    bridge = rl.load_bridge("facts-small")
    assert rl.Reft.from_pretrained(tmp_path / "out" / "edit", bridge=bridge).n_parameters() == found.numbers


def test_the_command_refuses_before_it_loads_anything(tmp_path) -> None:
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}))
    words = ["explain-finetune", "--model", "facts-small", "--finetuned", tmp_path, "--data", tmp_path / "data.jsonl"]
    assert "--ranks must be whole numbers with commas" in refused(*words, "--ranks", "a", code=2)
    assert "needs at least three examples" in refused(*words, "--out", tmp_path / "out")
    assert "does not exist" in refused(*words[:-1], tmp_path / "none.jsonl")
    assert not (tmp_path / "out").exists()
