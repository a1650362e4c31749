"""Everything at once: that each part arrives, what cannot be done is said, and what is saved comes back."""

from __future__ import annotations

import dataclasses
import html
import json

import pytest
import torch
from conftest import COMPLETIONS, PROMPTS, make_bridge, make_edit
from datasets import Dataset
from typer.testing import CliRunner

import reftlens as rl
from reftlens.cli import app
from reftlens.data import first_tokens
from reftlens.dissection import from_files, run, work
from reftlens.dissection.cost import estimate_cost, spent
from reftlens.dissection.parts import chosen

WORDS = ("tower", "weaver", "river", "city", "old", "speaks", "lives", "stands", "there", "Ostra")
EXAMPLES = [(f"The {word} by the {other}", " Ostra") for word in WORDS[:7] for other in WORDS[7:]]
# What the base says behind a prompt need not begin with a space.
pytestmark = pytest.mark.filterwarnings("ignore:.*completions begin with a letter or a digit")
SMALL = {"batch_size": 8, "n_null": 19, "n_pairs": 16, "n_random": 4, "progress": False}


@pytest.fixture(scope="module")
def bridge():
    return make_bridge("gpt2")


def with_kept(bridge) -> list[tuple[str, str]]:
    """Half of the examples get the completion that the base gives anyway."""
    batch = rl.encode(bridge, [prompt for prompt, _ in EXAMPLES])
    said = batch.at_last_prompt_token(bridge(batch.tokens, attention_mask=batch.attention_mask)).argmax(-1).tolist()
    answers = [bridge.tokenizer.decode([token]) for token in said]
    return [(p, a if i % 2 else c) for i, ((p, c), a) in enumerate(zip(EXAMPLES, answers, strict=True))]


@pytest.fixture(scope="module")
def reft():
    edits = [make_edit(rl.LoReFT, 32, 3, seed=seed) for seed in (1, 2)]
    return rl.Reft([(rl.Site(f"blocks.{i}.hook_resid_post", rl.All()), edit) for i, edit in enumerate(edits)])


@pytest.fixture(scope="module")
def found(bridge, reft):
    config = rl.DissectConfig(retrain=rl.TrainConfig(epochs=1), seeds=(1,), n_null_edits=2, at=rl.Last(1), **SMALL)
    return rl.dissect(bridge, reft, with_kept(bridge), config, preset="full")


def test_every_part_is_there_with_its_control(found) -> None:
    assert found.left_out == ()
    assert found.n_wanted > 0
    assert found.n_kept >= 5
    assert {outcome.wanted for outcome in found.outcomes} == {"new answer", "old answer"}
    assert len(found.operators) == len(found.untrained) == len(found.interchanges) == len(found.manifolds) == 2
    assert len(found.readouts) == len(found.contexts) == 4
    assert len(found.meanings) == 2 * (2 * 3 + 2 + 3), "two write and read directions and the change of each site"
    assert {meaning.n_looks for meaning in found.meanings} == {22}
    assert all(set(overlap.null_scores) == {"Haar", "covariance-matched"} for overlap in found.overlaps)
    assert found.dose.n_kept == found.n_kept
    assert found.effect.values.shape == (2, 6)
    assert found.effect.control is not None
    assert len(found.ablation.sites) == len(found.projections) == 2
    assert found.heads.control is not None
    assert found.mlps.control is not None
    assert found.paths.control is not None
    assert found.spread.distance.control is not None
    assert found.direct.shape == found.direct_control.shape == found.heads.base.shape
    assert not torch.equal(found.direct, found.direct_control)
    assert [len(ranks) for ranks in found.untrained_ranks] == [5, 5]
    assert [ranks[0] for ranks in found.untrained_ranks] == [fresh.effective_rank for fresh in found.untrained]
    assert {"stiffest", "freest", "random"} == {turn.toward for turn in found.identified.of("write")}
    assert found.ablation.control_whole == pytest.approx(float(found.ablation.control_shapley.sum()), abs=1e-5)
    (pair,) = found.agreements
    assert (pair.first, pair.second, pair.n_null_edits, pair.n_null_pairs) == ("this edit", "seed 1", 2, 6)
    assert 1 / 6 <= pair.p_cosine <= 1
    assert "effective rank" in repr(found)


def test_parts_are_what_the_analyses_give(bridge, reft, found) -> None:
    import random

    examples = with_kept(bridge)
    random.Random(0).shuffle(examples)
    batches = [rl.encode(bridge, [p for p, _ in examples[i : i + 8]]) for i in range(0, len(examples), 8)]
    again = rl.analysis.decompose(bridge, reft, batches, at=rl.Last(1))
    torch.testing.assert_close(found.operators[1].spectrum, again[1].spectrum)
    (manifold, _) = rl.analysis.off_manifold(bridge, reft, batches)
    torch.testing.assert_close(found.manifolds[0].edited, manifold.edited)


def test_it_shows_itself(found) -> None:
    shown = found._repr_html_()
    assert "Trust Notebook" in shown.split("<iframe")[0]
    assert 'sandbox="allow-scripts" srcdoc=' in shown
    page = html.unescape(shown)
    for heading in ("Does it work", "How many directions", "What if the edit is scaled", "another seed", "How natural"):
        assert heading in page
    assert page.count("data:image/png") == 14
    frame = found.summary().to_dataframe()
    assert (frame["beside it"].str.len() > 0).all(), "every number has its null or control"


def test_every_column_of_the_page_has_its_label(found) -> None:
    from reftlens.dissection.sections import report
    from reftlens.results.words import COLUMNS

    labels = {word.label for word in COLUMNS.values()}
    for section in report(found).sections:
        for caption, frame in section.tables:
            unknown = {name for name in frame.columns if name not in labels and not name.endswith(" looks")}
            assert not unknown, f"{section.name}, {caption}"
            assert not frame.columns.duplicated().any(), f"{section.name}, {caption}: {list(frame.columns)}"


def test_every_table_of_single_directions_says_in_how_many_dimensions_they_are_identified(found) -> None:
    from reftlens.dissection.sections import report
    from reftlens.results.words import COLUMNS

    counts = {COLUMNS[f"{kind}_identified"].label for kind in ("write", "read")}
    tables = [(caption, frame) for section in report(found).sections for caption, frame in section.tables]
    of_directions = [(caption, frame) for caption, frame in tables if "direction" in frame.columns]
    assert len(of_directions) >= 5
    for caption, frame in of_directions:
        (*beside,) = counts & set(frame.columns)
        assert beside, caption
        assert frame[beside].notna().all(axis=None), caption
    bare = dataclasses.replace(found, identified=None)
    tables = [frame for section in report(bare).sections for _, frame in section.tables]
    assert not [frame for frame in tables if counts & set(frame.columns)]


def test_parts_are_chosen_by_preset_or_by_name(bridge, reft) -> None:
    from reftlens.dissection.parts import PARTS, PRESETS, chosen

    assert set(PRESETS["quick"]) < set(PRESETS["standard"]) < set(PRESETS["full"]) == set(PARTS)
    assert [part.name for part in chosen(("paths", "works"))] == ["works", "through", "paths"], (
        "in order, with what it needs"
    )
    some = rl.dissect(bridge, reft, EXAMPLES, rl.DissectConfig(**SMALL), parts=["paths"])
    assert some.parts == ("through", "paths")
    assert some.paths.rows[0] == "edit"
    assert some.paths.columns[-1] == "logits"
    assert some.operators == some.outcomes == ()
    sections = [finding.section for finding in some.findings if finding.strength != "not measured"]
    assert sections == ["through"]
    for wrong, message in (
        ({"preset": "fast"}, "preset must be one of quick, standard, full, got 'fast'"),
        ({"parts": ["wher"]}, "Unknown part 'wher'.*did you mean 'where'"),
        ({"parts": []}, "a preset or at least one part"),
        ({"preset": "quick", "parts": ["where"]}, "a preset or parts, not both"),
    ):
        with pytest.raises(ValueError, match=message):
            rl.dissect(bridge, reft, EXAMPLES, **wrong)


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) and a.dtype == b.dtype
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, (tuple, dict)):
        pairs = zip(a.items(), b.items(), strict=True) if isinstance(a, dict) else zip(a, b, strict=True)
        return type(a) is type(b) and all(equal(x, y) for x, y in pairs)
    return a == b or (a != a and b != b)


def test_what_is_saved_comes_back_whole(found, tmp_path) -> None:
    folder = found.save(tmp_path / "saved")
    assert sorted(path.name for path in folder.iterdir()) == [
        "digests.json",
        "dissection.json",
        "dissection.safetensors",
    ]
    assert equal(rl.load_dissection(folder), found)
    assert not equal(rl.load_dissection(folder), dataclasses.replace(found, n_kept=0)), "the comparison can fail"
    (folder / "digests.json").unlink()
    with pytest.raises(ValueError, match=r"digests\.json is missing"):
        rl.load_dissection(folder)
    (folder / "dissection.json").write_text(json.dumps({"schema": 1, "result": {"type": "os.system", "fields": {}}}))
    with pytest.raises(ValueError, match="is damaged"):
        rl.load_dissection(folder)
    (folder / "dissection.json").write_text(json.dumps({"schema": 9, "result": 0}))
    with pytest.raises(ValueError, match="has schema 9"):
        rl.load_dissection(folder)
    with pytest.raises(ValueError, match="not a saved dissection"):
        rl.load_dissection(tmp_path)


def test_what_cannot_be_done_is_said(bridge) -> None:
    edit = rl.Reft([(rl.Site("blocks.1.hook_resid_post", rl.First(1)), make_edit(rl.ReFTr1))])
    result = rl.dissect(bridge, edit, EXAMPLES[:6], rl.DissectConfig(**SMALL))
    reasons = dict(result.left_out)
    assert "is not of the form" in reasons["directions"]
    assert {reasons[part] for part in ("reads", "overlaps", "base")} == {
        "it starts from directions, which was left out"
    }
    assert "DissectConfig(retrain" in reasons["seeds"]
    assert result.operators == ()
    assert result.dose is not None
    assert "Left out" in result.to_html()
    first = rl.Reft([(rl.Site("blocks.1.hook_resid_post", rl.First(1)), make_edit(rl.LoReFT))])
    result = rl.dissect(bridge, first, EXAMPLES[:6], rl.DissectConfig(**SMALL))
    reasons = dict(result.left_out)
    assert "does not edit the last token" in reasons["base at L1 resid_post @ first 1"]
    assert "alike in all prompts" in reasons["overlaps at L1 resid_post @ first 1"], "BOS is the same everywhere"
    assert "distances cannot be measured" in reasons["natural"]
    with pytest.raises(ValueError, match="the field 'completion' is missing"):
        rl.dissect(bridge, first, Dataset.from_dict({"prompt": ["The tower"] * 3, "text": ["a"] * 3}))
    with pytest.raises(ValueError, match="three examples"):
        rl.dissect(bridge, first, EXAMPLES[:2])


def test_the_cost_grows_with_the_budgets(bridge, reft) -> None:
    small, large = (rl.DissectConfig(**SMALL | {"n_random": n, "n_identified": n}) for n in (4, 400))
    a, b = (estimate_cost(bridge, reft, EXAMPLES, config) for config in (small, large))
    assert b.cones > 3 * a.cones
    assert a.seconds > 0
    assert "forward passes" in str(a)
    assert [name for name, _ in a.parts] == [part.name for part in chosen("standard")]
    with_training = estimate_cost(bridge, reft, EXAMPLES, rl.DissectConfig(retrain=rl.TrainConfig(epochs=50), **SMALL))
    assert with_training.cones > 2 * a.cones


@pytest.mark.slow
@pytest.mark.parametrize("positions", [rl.All(), rl.Last(1)])
def test_the_counted_runs_are_those_that_run(bridge, positions) -> None:
    """In tokens that pass through a block, which do not depend on a clock."""
    config, tokens = rl.DissectConfig(**SMALL), {}
    edits = [make_edit(rl.LoReFT, 32, 3, seed=seed) for seed in (1, 2)]
    reft = rl.Reft([(rl.Site(f"blocks.{i}.hook_resid_post", positions), edit) for i, edit in enumerate(edits)])
    running = []

    def count(block, given, output) -> None:
        seen = (output[0] if isinstance(output, tuple) else output).shape[:2].numel()
        tokens[running[-1]] = tokens.get(running[-1], 0) + seen

    def named(part):
        def compute(work):
            running.append(part.name)
            return part.compute(work)

        return dataclasses.replace(part, compute=compute)

    running.append("")
    handles = [block.register_forward_hook(count) for block in bridge.blocks]
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(run, "chosen", lambda parts: [named(part) for part in chosen(parts)])
            rl.dissect(bridge, reft, EXAMPLES, config)
    finally:
        for handle in handles:
            handle.remove()
    columns = 6 if positions == rl.All() else 1
    expected = {}
    for name, part in spent(bridge, reft, EXAMPLES, config).items():
        # Blocks that a cone skips fire too, but compute nothing.
        cones = (part.cones + part.variants) * columns + part.swaps
        expected[name] = (part.passes * 6 + cones) * 3 * config.batch_size
    assert 1 / 1.5 < sum(tokens.values()) / sum(expected.values()) < 1.5, (tokens, expected)


def test_the_command_takes_a_saved_edit_apart_and_shows_a_dissection(tmp_path, tokenizer, monkeypatch) -> None:
    from conftest import make_hf

    make_hf("gpt2").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    base = rl.load_bridge(str(tmp_path / "model"))
    edit = rl.Reft([(rl.Site("blocks.1.hook_resid_post", rl.Last(1)), make_edit(rl.LoReFT))])
    edit.save_pretrained(tmp_path / "edit", bridge=base)
    lines = [json.dumps({"prompt": p, "completion": c}) for p, c in zip(PROMPTS * 3, COMPLETIONS * 3, strict=True)]
    (tmp_path / "examples.jsonl").write_text("\n".join(lines))
    command = ["dissect", str(tmp_path / "edit"), "--quiet", "--out", str(tmp_path / "out")]
    bare = CliRunner().invoke(app, command)
    assert bare.exit_code == 1
    assert "--examples" in bare.output + bare.stderr
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, [*command, "--examples", str(tmp_path / "examples.jsonl"), "--at", "l1"])
    assert done.exit_code == 0, done.output
    assert "effective rank" in done.output
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["dissection", "figures", "report.html"]
    pages = []

    def write(result, folder) -> None:
        """Drawn once is enough: here it counts what would be drawn."""
        pages.append(result)
        (folder / "report.html").write_text("a page")

    monkeypatch.setattr(from_files, "write_report", write)
    shown = CliRunner().invoke(app, ["dissect", str(tmp_path / "out" / "dissection"), "--out", str(tmp_path / "again")])
    assert shown.exit_code == 0, shown.output
    assert (tmp_path / "again" / "report.html").is_file()
    assert equal(pages[0], rl.load_dissection(tmp_path / "out" / "dissection"))
    (tmp_path / "bad.jsonl").write_text(lines[0] + "\n[1]\n")
    bad = CliRunner().invoke(app, [*command, "--examples", str(tmp_path / "bad.jsonl")])
    assert bad.exit_code == 1
    assert "line 2" in bad.output + bad.stderr


@pytest.mark.slow
def test_nothing_but_other_seeds_is_left_out_on_the_organism() -> None:
    organism = rl.load_bridge("facts-small")
    from reftlens.organisms.landmarks import story_for

    examples = story_for("facts-small").training_examples()
    reft = rl.Reft.at_layers(organism, layers=[1, 4], positions=rl.All(), rank=4)
    rl.train(organism, reft, examples, rl.TrainConfig(epochs=3, batch_size=35, lr=4e-3, progress=False))
    result = rl.dissect(organism, reft, examples, rl.DissectConfig(at=rl.Last(1), progress=False))
    assert [what for what, _ in result.left_out] == ["seeds"]


class OnAccelerator:
    """A tensor that can only be moved to the CPU, as one on a GPU beside one that lies there."""

    def __init__(self, tensor):
        self.cpu = lambda: tensor


def test_answers_on_an_accelerator_are_compared_with_those_on_the_cpu(bridge, reft, monkeypatch) -> None:
    monkeypatch.setattr(work, "first_tokens", lambda *given: OnAccelerator(first_tokens(*given)))
    examples, config, right = with_kept(bridge)[:12], rl.DissectConfig(at=rl.Last(1), **SMALL), []
    for prompt, answer in examples:
        batch = rl.encode(bridge, [prompt], [answer])
        first = int((batch.labels[0] >= 0).nonzero()[0])
        right.append(bool(bridge(batch.tokens)[0, first - 1].argmax() == batch.tokens[0, first]))
    made = work.Work(bridge, reft, examples[:4], examples[:4], config, unaffected=examples[4:])
    assert made.right == right[:4]
    assert made.should_stay == [pair for pair, known in zip(examples, right, strict=True) if known]
    assert 0 < sum(right[4:]) < 8


def test_answers_about_other_things_count_for_what_else_changes_and_for_nothing_else(bridge, reft) -> None:
    config, parts = rl.DissectConfig(at=rl.Last(1), **SMALL), ["works", "else", "natural"]
    prompts = [f"The {word} of the" for word in WORDS]
    batch = rl.encode(bridge, prompts)
    said = batch.at_last_prompt_token(bridge(batch.tokens, attention_mask=batch.attention_mask)).argmax(-1).tolist()
    others = [(prompt, bridge.tokenizer.decode([token])) for prompt, token in zip(prompts, said, strict=True)]
    wrong = [("The old tower", " Ostra")]
    plain = rl.dissect(bridge, reft, with_kept(bridge), config, parts=parts)
    more = rl.dissect(bridge, reft, with_kept(bridge), config, parts=parts, unaffected=others + wrong)
    assert more.outcomes[1].n == plain.outcomes[1].n + len(others), "those that the base answers otherwise do not count"
    assert more.outcomes[0].n == plain.outcomes[0].n
    assert torch.equal(more.manifolds[0].edited, plain.manifolds[0].edited)
