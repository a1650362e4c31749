"""What a terminal and a notebook show: one line, a table of bounded size, and nothing alive that a string brought in."""

from __future__ import annotations

import io
import sys
from html.parser import HTMLParser

import pandas as pd
import pytest
import torch
from made import every_result, made_patch
from matplotlib.text import Text

import reftlens as rl
from reftlens import plot, results
from reftlens.display import MOST_COLUMNS, MOST_LINES, as_html, framed, progress_bar
from reftlens.results import Result, TokenMap
from reftlens.text import plain

HOSTILE = [
    "<script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "a & b &amp; ' \" <",
    "<img src=http://evil.example/x.png onerror=alert(1)>",
    "\udc80 half",
    "\u202eback",
    "\x1b[1m\x00\n\t",
    "</td></tr></table><b>",
    "",
    "x" * 5000,
]
CLASSES = [
    kind
    for kind in (getattr(results, name) for name in results.__all__)
    if isinstance(kind, type) and kind is not results.Finding
]


class Shown(HTMLParser):
    """The tags of a page, and the text of each cell and headline."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_every_result_class_is_among_the_samples() -> None:
    assert {type(sample) for sample in every_result("x")} == set(CLASSES) - {Result, results.SiteResult}
    assert all(issubclass(kind, Result) for kind in CLASSES)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_repr_is_one_short_line_that_a_terminal_takes(text: str) -> None:
    for sample in every_result(text):
        shown = repr(sample)
        assert shown.startswith(type(sample).__name__)
        assert len(shown) <= 330
        assert shown.isprintable()
        assert shown.encode("utf-8")


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_in_a_notebook_comes_alive(text: str) -> None:
    for sample, harmless in zip(every_result(text), every_result("harmless"), strict=True):
        page = sample._repr_html_()
        assert Shown(page).tags == Shown(harmless._repr_html_()).tags, type(sample)
        assert page.encode("utf-8").decode("utf-8") == page
        assert len(page) < 40_000


@pytest.mark.sampled(2)
@pytest.mark.parametrize("text", HOSTILE)
def test_every_result_draws_itself_and_figures_hold_no_text_that_cannot_be_drawn(text: str) -> None:
    for sample in every_result(text):
        figure = sample.plot()
        assert figure.axes, type(sample)
        assert all(shown.get_text().isprintable() or "\n" in shown.get_text() for shown in figure.findobj(Text))


def test_results_are_drawn_by_their_class_or_as_a_table() -> None:
    samples = {type(sample): sample for sample in every_result("x")}
    assert set(plot.DRAWINGS) <= {*samples, Result}
    assert {kind for kind in samples if kind not in plot.DRAWINGS} == {
        results.Alignment,
        results.Answered,
        results.Calibrated,
        results.Certificate,
        results.Comparison,
        results.Context,
        results.Evaluation,
        results.Explained,
        results.Identification,
        results.Identified,
        results.ReadContexts,
        results.ReadSpace,
        results.SiteCheck,
        results.SiteChecks,
        results.Steered,
        results.SteeringClaim,
        results.Swap,
        results.Turn,
        results.WorstPrompt,
    }
    swaps = [samples[results.Swap]] * 3
    assert "3 results" in " ".join(shown.get_text() for shown in plot.draw(swaps).findobj(Text))
    assert (
        samples[results.TokenMap].plot(title="A title").findobj(lambda shown: getattr(shown, "_text", "") == "A title")
    )
    with pytest.raises(TypeError, match="several of one class, got Swap, Dose"):
        plot.draw([samples[results.Swap], samples[results.Dose]])
    with pytest.raises(TypeError, match=r"got none"):
        plot.draw([])


def test_the_check_for_living_tags_finds_one() -> None:
    alive = "<div>" + HOSTILE[0] + "</div>"
    assert Shown(alive).tags != Shown("<div>harmless</div>").tags


def test_large_results_are_cut_and_say_so() -> None:
    n = 3000
    large = TokenMap(torch.rand(2, n), None, ("a", "b"), (" t",) * n, (False,) * n, "q", "", 1)
    page = large._repr_html_()
    assert len(page) < 10_000
    assert page.count("<tr>") == MOST_LINES + 1
    assert f"{MOST_LINES} of {2 * n} lines" in page
    assert len(made_patch(40, ("t",) * 400)._repr_html_()) < 10_000


def test_first_and_last_lines_are_shown_as_they_are() -> None:
    frame = pd.DataFrame({"n": range(100), "share": [0.5] * 99 + [float("nan")]})
    text = [part.strip() for part in Shown(as_html("h", lambda: frame)).text if part.strip()]
    half = MOST_LINES // 2
    shown = [*range(half), "…", *range(100 - half, 100)]
    assert text[1:3] == ["n", "share"]
    assert text[3:-1:2] == [str(n) for n in shown]
    assert text[4:-1:2] == ["0.5"] * half + ["…"] + ["0.5"] * (half - 1) + ["\N{EN DASH}"]


def test_small_tables_are_whole_and_wide_ones_are_cut() -> None:
    small = as_html("h", lambda: pd.DataFrame({"a": [1, 2]}))
    assert "to_dataframe" not in small
    wide = as_html("h", lambda: pd.DataFrame([range(50)]))
    assert wide.count("<th>") == MOST_COLUMNS
    assert f"the first {MOST_COLUMNS} of 50 columns" in wide


def test_spaces_at_the_ends_are_seen() -> None:
    text = Shown(as_html("h", lambda: pd.DataFrame({"token": [" a", "a", "b  ", "   "]}))).text
    assert [part for part in text if part.strip()][2:] == ["·a", "a", "b··", "···"]


def test_plain_text_keeps_what_can_be_read() -> None:
    assert plain("Zürich 上海 $x$") == "Zürich 上海 $x$"
    assert plain("a\r\nb\x07") == "a\\r\\nb\\x07"


def test_rules_show_which_tokens_they_pick_of_a_short_and_a_long_prompt() -> None:
    half = rl.First(5) | rl.Last(5)
    page = (rl.First(2) | rl.Last(1))._repr_html_()
    assert "6 tokens: ■■□□□■" in page
    assert "16 tokens: ■■□□□□□□□□□□□□□■" in page
    assert "■■■■■■" in half._repr_html_()
    assert "each generated one" in (rl.Last(1) | rl.Generated())._repr_html_()


@pytest.mark.parametrize("rule", [rl.At(9), rl.Span("<script>&"), rl.All() - rl.Span("\udc80"), rl.At(0) | rl.At(-20)])
def test_rules_that_a_prompt_cannot_satisfy_still_show_themselves(rule: rl.Positions) -> None:
    page = rule._repr_html_()
    assert "<script>" not in page
    assert page.encode("utf-8")
    assert {tag for tag, _ in Shown(page).tags} == {"div", "br"}


def test_settings_show_what_differs_from_the_defaults() -> None:
    page = Shown(rl.TrainConfig(epochs=7, output_dir="<b>")._repr_html_())
    assert page.text[0] == "TrainConfig(epochs=7, output_dir='<b>')"
    cells = [text for text in page.text if text.strip()]
    assert cells[1:7] == ["setting", "value", "default", "epochs", "7", "3"]
    assert {tag for tag, _ in page.tags} == {"div", "table", "thead", "tbody", "tr", "th", "td"}


def test_a_site_shows_its_point_and_which_tokens_it_edits() -> None:
    page = rl.Site("blocks.3.attn.hook_z", rl.First(1) | rl.Last(1), head=2)._repr_html_()
    assert "head=2" in page
    assert "6 tokens: ■□□□□■" in page
    assert "<b>" not in rl.Site("<b>", rl.All())._repr_html_()


def test_a_page_in_a_notebook_is_framed_and_explained_where_frames_vanish() -> None:
    shown = framed("An <edit>\n", '<!doctype html><p title="a">&amp;</p>')
    assert Shown(shown).tags[-1][0] == "iframe"
    assert 'sandbox="allow-scripts"' in shown
    assert "&lt;!doctype html&gt;&lt;p title=&#34;a&#34;&gt;&amp;amp;&lt;/p&gt;" in shown
    assert "An &lt;edit&gt;" in shown
    # JupyterLab has it in no menu.
    assert "choose Trust Notebook in the command palette" in shown[: shown.index("<style>")]
    assert {tag for tag, _ in Shown(shown[: shown.index("<style>")]).tags} <= {"div", "br"}


def test_batches_edits_and_logs_show_themselves(gpt2, make_reft) -> None:
    batch = rl.encode(gpt2, ["<b>The tower</b> stands in", "The weaver speaks"], [" Ostra", " Tharic ."])
    page = batch._repr_html_()
    assert "&lt;b&gt;The tower&lt;/b&gt;" in page
    assert "<b>" not in page
    assert batch.to_dataframe()["prompt tokens"].tolist() == batch.prompt_mask.sum(1).tolist()
    reft = make_reft(("blocks.0.hook_resid_post", "blocks.1.hook_resid_post"))
    assert "blocks.1.hook_resid_post" in reft._repr_html_()
    assert list(reft.to_dataframe()["edit"]) == ["LoReFT(d_model=32, rank=3)"] * 2
    log = rl.train(gpt2, reft, [("The tower", " stands")], rl.TrainConfig(epochs=2, progress=False))
    assert repr(log) == f"TrainLog(2 steps, loss {log.loss[0]:.3f} -> {log.loss[1]:.3f} nats per token)"
    assert "<td>2</td>" in log._repr_html_()
    assert repr(rl.TrainLog((), (), log.config)) == "TrainLog(0 steps)"


def test_names_of_an_edit_are_inert(make_reft) -> None:
    for text in HOSTILE[:-2]:
        if "\udc80" in text:
            with pytest.raises(ValueError, match="must not hold a lone surrogate"):
                rl.Reft(list(make_reft()), names=[text])
            continue
        named = rl.Reft(list(make_reft()), names=[text])
        assert {tag for tag, _ in Shown(named._repr_html_()).tags} == {
            "div",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
        }


def test_an_edit_of_many_sites_is_cut(make_reft) -> None:
    many = make_reft(tuple(f"blocks.{layer}.hook_resid_post" for layer in range(300)), rank=1)
    assert len(repr(many).splitlines()) == MOST_LINES + 2
    assert repr(many).endswith("... and 280 more")
    assert f"{MOST_LINES} of 300 lines" in many._repr_html_()


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("objective", "example", "unit"),
    [
        (lambda bridge: rl.objectives.Completion(), ("The tower", " stands"), "nats per token"),
        (lambda bridge: rl.objectives.Classification(bridge, 2), ("The tower", 1), "nats per example"),
        (lambda bridge: rl.objectives.DPO(), ("The tower", " stands", " speaks"), "nats per pair"),
        (lambda bridge: rl.objectives.Distillation(bridge), ("The tower", " stands"), "nats per token"),
    ],
)
def test_a_log_has_the_unit_of_its_objective(gpt2, make_reft, objective, example, unit) -> None:
    once = rl.TrainConfig(epochs=1, progress=False)
    log = rl.train(gpt2, make_reft(), [example], once, objective=objective(gpt2))
    assert log.unit == unit
    assert repr(log).endswith(f" {unit})")


def test_a_preview_of_a_long_prompt_shows_its_two_ends(gpt2) -> None:
    n = 5000
    edited = tuple(place in (0, n - 1) for place in range(n))
    tokens = ("<b>", *(f" t{place}" for place in range(1, n - 1)), "\u202e\n")
    long = rl.Preview(rl.First(1) | rl.Last(1), tokens, edited)
    assert len(repr(long)) < 4000
    assert "2 of 5000 tokens: [<b>] t1" in repr(long)
    page = long._repr_html_()
    assert len(page) < 40_000
    assert {tag for tag, _ in Shown(page).tags} == {"div", "span"}
    assert "".join(Shown(page).text).endswith(" t4998\\u202e\\n")


class LogFile(io.StringIO):
    """A file as a shell gives it to a program: no terminal."""

    def isatty(self) -> bool:
        return False


def test_progress_in_a_log_file_is_a_line_every_few_seconds(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", LogFile())
    with progress_bar(total=328, desc="training the edit", unit="step", shown=True) as bar:
        for _ in range(328):
            now[0] += 0.1
            bar.set_postfix(loss="0.5", refresh=False)
            bar.update(1)
    written = sys.stderr.getvalue()
    assert "\r" not in written
    lines = written.splitlines()
    assert 32.8 / 5 <= len(lines) <= 32.8 / 5 + 2
    assert lines[0].startswith("training the edit: 0 of 328")
    assert lines[-1] == "training the edit: 328 of 328, 00:32 elapsed, 00:00 left, loss=0.5"
    monkeypatch.setattr(sys, "stderr", LogFile())
    assert list(progress_bar("ab", shown=False)) == ["a", "b"]
    assert sys.stderr.getvalue() == ""


def test_steps_of_training_are_no_lines_in_a_log_file(gpt2, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", LogFile())
    monkeypatch.setattr("tqdm.std.time", lambda: 0.0)
    reft = rl.Reft.at_layers(gpt2, layers=[1], positions="l1", rank=1)
    rl.train(gpt2, reft, [("The tower", " Ostra")] * 20, rl.TrainConfig(epochs=1, batch_size=1))
    lines = [line for line in sys.stderr.getvalue().splitlines() if line.startswith("training the edit")]
    assert len(lines) == 2, "the beginning and the end"
    assert "loss=" in lines[-1]
