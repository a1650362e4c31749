"""The report is one page that shows what it was given, and in which nothing that it was given is alive."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from made import made_dose, made_graph, made_projection
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from reftlens.plot import png, token_strip
from reftlens.plot.canvas import number
from reftlens.plot.html import Html
from reftlens.plot.page import Picture, Report, Section, render
from reftlens.plot.plane import plane
from reftlens.plot.wiring import wiring
from reftlens.results import EditSize, Finding, TokenMap

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
HOSTILE = [
    "<script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "' onclick='alert(1)",
    "<img src=http://evil.example/x.png onerror=alert(1)>",
    "javascript:alert(1)",
    "</title></style><b>{{ 7 * 7 }}",
    "&lt;script&gt;",
]


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and the text of each kind of element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "elements must nest"

    def handle_data(self, data: str) -> None:
        self.text.append((self.open[-1] if self.open else "", data))

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def texts(self, tag: str) -> list[str]:
        return [data for name, data in self.text if name == tag]


def dots(width: int = 3, height: int = 2) -> bytes:
    return png(Figure(figsize=(width, height)))


def size(*tokens: str, site: str = "blocks.1.hook_resid_post") -> EditSize:
    n = len(tokens)
    rows = ("blocks.0.hook_resid_post", site)
    relative = torch.tensor([[0.5] * n, [0.25] * n])
    return EditSize(relative, relative > 0, rows, tokens, (False,) * n)


def strip(*tokens: str, site: str = "blocks.1.hook_resid_post") -> Html:
    return token_strip(size(*tokens, site=site))


def effect(*tokens: str, prompts: int = 3, row: str = "L4 resid_post @ all", name: str = "turned") -> TokenMap:
    """Rows of 0.5 and -0.25 on average; each prompt has its own first token, and 0.1 more than the one before it."""
    n = len(tokens)
    steps = 0.1 * (torch.arange(prompts) - (prompts - 1) / 2)
    values = torch.tensor([[0.5] * n, [-0.25] * n])
    texts = tuple((f"{tokens[0]}{number}", *tokens[1:]) for number in range(prompts))
    each = values + steps[:, None, None]
    rows = ("blocks.1.hook_resid_post", row)
    return TokenMap(
        values, 0.1 * values, rows, texts[0], (True,) + (False,) * (n - 1), name, name, prompts, each, 0.1 * each, texts
    )


def report_of(text: str) -> Report:
    frame = pd.DataFrame({text: [text, "plain"], "value": [0.5, 0.25]}, index=pd.Index([text, "b"], name=text))
    section = Section(
        text,
        (text,),
        (Picture(text, dots(), text),),
        ((text, frame),),
        ((text, size(text)), (text, effect(text, row=text, name=text))),
        ((text, effect(text, "b", row=text, name=text)),),
        ((text, made_dose()),),
        planes=((text, replace(made_projection(groups=(text, "b")), site=text, prompts=((text,),) * 40)),),
        graphs=((text, made_graph((text, "b", text), text)),),
    )
    findings = (Finding(text, text, text, null=text),)
    return Report(text, text, (section, section), {text: text, "command": [text]}, findings)


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_is_given_comes_alive(text: str) -> None:
    page = Page(render(report_of(text)))
    plain = Page(render(report_of("harmless")))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    for tag, attributes in page.elements:
        assert tag not in ("iframe", "object", "embed", "link", "base", "form")
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        assert attributes.get("href", "#").startswith("#")
    [style] = page.texts("style")
    assert "url(" not in style
    assert "@import" not in style
    numbers, script = page.texts("script")
    assert [style, script] == [*plain.texts("style"), plain.texts("script")[1]]
    assert not set("<>&") & set(numbers)
    assert text in str(json.loads(numbers)[0]["rows"]) or "\\x" in text or len(text) > 18


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_given_is_shown_as_it_is(text: str) -> None:
    page = Page(render(report_of(text)))
    for tag in ("title", "h1", "h2", "p", "figcaption", "th", "td"):
        assert text in page.texts(tag), tag
    assert {image["alt"] for image in page.of("img")} == {text}


def test_the_script_is_short_and_writes_text_alone() -> None:
    script = Page(render(report_of("x"))).texts("script")[1]
    assert len(script.splitlines()) < 150
    for living in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "Function(",
        "fetch",
        'setAttribute("on',
    ):
        assert living not in script, living


def named(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_the_page_forbids_requests_and_all_but_its_own_script_and_style() -> None:
    page = Page(render(report_of("x")))
    [policy] = [meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "script-src": named(page.texts("script")[1]),
        "style-src": named(page.texts("style")[0]),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    # A policy holds only for what follows it.
    assert [tag for tag, _ in page.elements].index("meta") < [tag for tag, _ in page.elements].index("style")


def test_pictures_are_embedded_whole_and_at_their_printed_size() -> None:
    pictures = (Picture("one", dots(3, 2), "first"), Picture("two", dots(5, 3), "second"))
    page = Page(render(Report("t", "l", (Section("s", pictures=pictures),), {})))
    sources = [image["src"].removeprefix("data:image/png;base64,") for image in page.of("img")]
    assert [base64.b64decode(source) for source in sources] == [picture.png for picture in pictures]
    for image, picture in zip(page.of("img"), pictures, strict=True):
        assert (int(image["width"]), int(image["height"])) == picture.size
    # 150 dots per inch, 96 CSS pixels per inch: 5 x 3 in and a margin of 0.1 in on each side.
    with_margin = Picture("three", dots(5, 3), "").size
    assert with_margin[0] / with_margin[1] == pytest.approx(5.2 / 3.2, rel=0.1)


def test_a_picture_that_is_no_png_is_refused() -> None:
    with pytest.raises(ValueError, match="PNG"):
        Picture("name", b"\xff\xd8\xff\xe0 a JPEG, and long enough for a header", "caption")


def test_numbers_keep_sensible_digits() -> None:
    frame = pd.DataFrame(
        {
            "share": [0.123456, -0.5, np.nan],
            "large": [12345.678, 1.5, 0.0],
            "tiny": [0.00002, 0.75, 0.0],
            "count": [12, -3, 100000],
            "flag": [True, False, True],
            "name": ["a", " b", "c"],
            "mixed": [None, 0.5, "text"],
        }
    )
    page = Page(render(Report("t", "l", (Section("s", tables=(("caption", frame),)),), {})))
    cells = np.array(page.texts("td")).reshape(3, 7)
    assert cells.tolist() == [
        ["0.123", "12346", f"2.0e{MINUS}05", "12", "yes", "a", DASH],
        [f"{MINUS}0.500", "2", "0.750", f"{MINUS}3", "no", " b", "0.500"],
        [DASH, "0", "0.000", "100000", "yes", "c", "text"],
    ]
    right = ["number" in cell.get("class", "") for cell in page.of("td")]
    assert np.array(right).reshape(3, 7)[:, :6].tolist() == [[True] * 4 + [False] * 2] * 3
    assert ["number" in cell.get("class", "") for cell in page.of("th")] == [True] * 4 + [False] * 3


def test_an_index_with_names_is_shown_and_a_range_is_not() -> None:
    named = pd.DataFrame({"n": [3]}, index=pd.MultiIndex.from_tuples([("a", 7)], names=["group", "seed"]))
    ranged = pd.DataFrame({("loss", "mean"): [5]})
    page = Page(render(Report("t", "l", (Section("s", tables=(("x", named), ("y", ranged))),), {})))
    assert page.texts("th") == ["group", "seed", "n", "loss / mean"]
    assert page.texts("td") == ["a", "7", "3", "5"]


def test_findings_lead_to_their_sections_and_a_name_comes_before_a_heading() -> None:
    sections = tuple(Section(heading) for heading in ("Where?", "where", "settings", "上", "x" * 99))
    findings = (
        Finding("Does it work?", "Yes.", "where", null="By chance: no."),
        Finding("Where?", "There.", "place"),
        Finding("Why?", "Not measured.", "no such part"),
    )
    report = Report("t", "l", (Section("By name", name="place"), *sections), {"seed": 0}, findings)
    page = Page(render(report))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = [link["href"].removeprefix("#") for link in page.of("a") if link.get("class") != "term"]
    assert links == ["where-2", "place"]
    assert set(links) <= set(ids)
    assert page.texts("a") == ["Does it work?", "Where?"]
    assert page.texts("h2")[-2:] == ["x" * 99, "Settings"]
    # Folded where findings say the main things, and not where nothing does.
    assert not any("open" in one for one in page.of("details"))
    assert all("open" in one for one in Page(render(Report("t", "l", sections, {"seed": 0}))).of("details"))


def test_terms_of_the_glossary_are_linked_once_in_a_section_and_explained_once() -> None:
    text = "The control and the controls, beside a null of Haar subspaces; p = 0.2, but not p alone."
    page = Page(render(Report("t", "l", (Section("s", (text, text)), Section("r", (text,))), {})))
    links = [link["href"].removeprefix("#") for link in page.of("a")]
    assert links == ["term-control", "term-null", "term-haar", "term-p"] * 2
    assert page.texts("dt") == ["control", "null", "p", "Haar"]
    assert {one["id"] for one in page.of("dt")} == set(links)


def test_a_map_shows_the_mean_with_roles_and_each_prompt_with_its_own_tokens() -> None:
    page = Page(render(Report("t", "l", (Section("s", maps=(("caption", effect(" Gate", " of")),)),), {})))
    assert page.texts("th")[:2] == ["[last subject]*", "·of"]
    assert page.texts("option") == ["mean of 3 prompts", "1: Gate0 of", "2: Gate1 of", "3: Gate2 of"]
    [numbers] = json.loads(page.texts("script")[0])
    assert [view["tokens"] for view in numbers["views"][1:]] == [[f"·Gate{n}*", "·of"] for n in range(3)]
    # The last row stands on top, as in a figure.
    assert numbers["rows"] == ["L4 resid_post @ all", "1 resid_post"]
    assert numbers["views"][0]["value"] == [[-0.25, -0.25], [0.5, 0.5]]
    assert page.texts("td") == [f"{MINUS}0.25", f"{MINUS}0.25", "0.50", "0.50"]
    cells = [cell for cell in page.of("td") if "title" in cell]
    assert (
        cells[0]["title"] == f"L4 resid_post @ all, token [last subject]*: measured {MINUS}0.250, control {MINUS}0.025"
    )


def test_cells_that_the_control_reaches_are_grey() -> None:
    result = effect("a", "b", prompts=1)
    result.values[0, 0], result.control[1, 1] = 0.05, -0.3
    page = Page(render(Report("t", "l", (Section("s", maps=(("caption", result),)),), {})))
    assert ["covered" in cell["class"] for cell in page.of("td") if "title" in cell] == [True, True, True, False]


def test_a_dose_curve_is_drawn_and_its_doses_are_read_out() -> None:
    result = made_dose()
    page = Page(render(Report("t", "l", (Section("s", doses=(("caption", result),)),), {})))
    [numbers] = json.loads(page.texts("script")[0])
    assert len(numbers) == len(result.alpha)
    at = int((result.alpha - 1).abs().argmin())
    assert f"wanted answer {number(float(result.target[at]), 2)} (" in numbers[at]["text"]
    assert [one["value"] for one in page.of("input")] == [str(at)]
    assert len(page.of("polyline")) == 4
    assert all(str(numbers[at]["x"])[:5] in line["x1"] for line in page.of("line"))


def test_tokens_in_a_plane_say_where_they_were_and_where_they_went() -> None:
    result = made_projection()
    result.before[:2] = torch.tensor([[-9.0, -9.0], [9.0, 9.0]])
    result.after[:2] = result.before[:2] + torch.tensor([4.0, 1.0])
    result = replace(result, prompts=(("<s>", " Tower", " in"),) * 40)
    page = Page(str(plane(result)))
    said = page.texts("title")
    assert len(said) == 40
    assert said[0].startswith(
        f"Tower in (moved): from ({MINUS}9.00, {MINUS}9.00) to ({MINUS}5.00, {MINUS}8.00); in a random"
    )
    circles = page.of("circle")
    # The lowest place of all is at the corner of the axes, and the furthest at their ends.
    assert (circles[0]["cx"], circles[0]["cy"]) == ("48.0", "266.0")
    assert (circles[3]["cx"], circles[3]["cy"]) == ("348.0", "24.0")
    assert len(page.of("path")) == 1 + 40
    assert [one["class"] for one in page.of("g")][1:4] == ["move g0", "move g1", "move g0"]
    nothing = replace(result, before=torch.full((40, 2), torch.nan), after=torch.full((40, 2), torch.nan))
    assert "No token" not in str(plane(nothing)), "the control has places"


def test_nodes_and_edges_of_a_graph_say_what_they_are() -> None:
    result = made_graph()
    page = Page(str(wiring(result, result.edit)))
    kinds = [one["class"] for one in page.of("g")]
    assert kinds == ["cells", *["move wire lowers"] * 2, *["move wire raises"] * 3, *["move node"] * 6]
    said = page.texts("title")
    assert said[0] == f"2.3@7 to answer: {MINUS}0.900"
    assert "e0.0@0, direction 0 of L1 resid_post @ first 1 at '<|endoftext|>': effect alone 2.000" in said
    assert "2.1@7, head 2.1 at ' in': effect alone 1.000" in said
    assert "answer, the answer: whole effect 3.000" in said
    widths = [float(path["stroke-width"]) for path in page.of("path")]
    assert widths == sorted(widths)
    # The blocks' order from below: a head that reads is above the direction, and the answer above all.
    heights = dict(
        zip([text.split("@")[0] for text in said[5:]], [float(one["y"]) for one in page.of("rect")], strict=True)
    )
    assert heights["answer, the answer: whole effect 3.000"] < heights["mlp3"] < heights["2.1"] < heights["e0.0"]


def test_sections_refuse_what_they_cannot_show() -> None:
    with pytest.raises(Exception, match=r"Html|EditSize"):
        Section("s", strips=(("caption", strip("a")),))  # type: ignore[arg-type]


def test_half_characters_can_be_written_to_a_file() -> None:
    text = "lone \udc80 and bell \x07"
    page = render(Report(text, text, (Section(text, strips=((text, size(text)),)),), {text: text}))
    assert "lone \\udc80" in page.encode("utf-8").decode("utf-8")


@pytest.mark.parametrize("token", [*HOSTILE, 'x" style="position:fixed', "x' title='y"])
def test_strips_escape_tokens(token: str) -> None:
    page, plain = Page(str(strip(" a", token, site=token))), Page(str(strip(" a", "b")))
    assert [(tag, list(attributes)) for tag, attributes in page.elements] == [
        (tag, list(attributes)) for tag, attributes in plain.elements
    ]
    assert token.replace(" ", "·") in page.texts("span")


def test_strips_show_whitespace_and_sizes_of_the_row_that_is_asked_for() -> None:
    sizes = torch.tensor([[0.5, 0.0, 0.125], [0.25, 0.75, 0.0]])
    edited = torch.tensor([[True, False, True], [True, True, False]])
    rows = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
    result = EditSize(sizes, edited, rows, (" a", "\n", "\tb"), (True, False, False))

    def titles(row: int | None) -> list[str]:
        return [span["title"] for span in Page(str(token_strip(result, row))).of("span") if "title" in span]

    assert Page(str(token_strip(result))).texts("span")[:3] == ["·a", "⏎", "⇥b"]
    assert titles(0) == ["subject; 0 resid_post: |Δ|/|h| = 0.5", "not edited", "0 resid_post: |Δ|/|h| = 0.125"]
    assert titles(1)[1:] == ["1 resid_post: |Δ|/|h| = 0.75", "not edited"]
    assert titles(None)[0] == "subject; 0 resid_post: |Δ|/|h| = 0.5; 1 resid_post: |Δ|/|h| = 0.25"
    with pytest.raises(ValueError, match="row must be in"):
        token_strip(result, 2)


def test_strips_bring_ink_that_is_read_on_their_own_background() -> None:
    spans = Page(str(strip(*"abc"))).of("span")
    shaded = [span["style"] for span in spans if "background" in span["style"]]
    assert len(shaded) == 3 + 5
    for style in shaded:
        background, ink = re.findall(r"background:(#\w{6});color:(\w+)", style)[0]
        assert contrast(background, ink) >= 4.5, style


def contrast(background: str, ink: str) -> float:
    """WCAG 2: (lighter + 0.05) / (darker + 0.05)."""
    parts = np.array([int(background[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    other = {"black": 0.0, "white": 1.0}[ink]
    return (max(luminance, other) + 0.05) / (min(luminance, other) + 0.05)


def test_long_tables_are_folded_under_their_caption() -> None:
    frames = [pd.DataFrame({"n": range(lines)}) for lines in (16, 17)]
    section = Section("s", tables=(("short <b>", frames[0]), ("long <b>", frames[1])))
    page = Page(render(Report("t", "l", (section,), {})))
    assert [text for text in page.texts("summary") if text.strip()] == ["long <b> (17 lines)"]
    assert len(page.of("details")) == 2
    assert page.texts("td") == [str(n) for lines in (16, 17) for n in range(lines)]


def effects(token: str = " Tower", quantity: str = "effect, in nats") -> TokenMap:
    values = torch.tensor([[0.5, float("nan"), -1.0], [-2.0, float("nan"), 0.25]])
    rows = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
    return TokenMap(values, values / 10, rows, (" a", "\n", token), (False, False, True), quantity, "turned", 3)


def test_a_strip_of_effects_shades_by_sign_and_says_value_and_control() -> None:
    page = Page(str(token_strip(effects(), 0, title="a <title>")))
    spans = [span for span in page.of("span") if "title" in span]
    assert [span["title"] for span in spans] == [
        "0 resid_post: 0.5 (control 0.05)",
        "no value",
        f"subject; 0 resid_post: {MINUS}1 (control {MINUS}0.1)",
    ]
    shades = [re.findall(r"background:(#\w{6})", span["style"]) for span in spans]
    # Red for 0.5, nothing for what has no value, blue for -1; the whole map, of both rows, sets the scale.
    cmap = colormaps["RdBu_r"]
    assert shades == [[to_hex(cmap(0.625))], [], [to_hex(cmap(0.25))]]
    assert page.texts("div")[0] == "a <title>"
    key = [text for span, text in zip(page.of("span")[3:], page.texts("span")[3:], strict=True) if "title" not in span]
    assert key == [f"{MINUS}2", f"{MINUS}1", "0", "1", "2"]
    furthest = [span["style"] for span in Page(str(token_strip(effects()))).of("span") if "title" in span]
    assert re.findall(r"background:(#\w{6})", furthest[0]) == [to_hex(cmap(0.0))]


@pytest.mark.parametrize("text", HOSTILE)
def test_strips_escape_titles_tokens_and_quantities(text: str) -> None:
    page = Page(str(token_strip(effects(text, text), title=text)))
    plain = Page(str(token_strip(effects("x", "x"), title="x")))
    assert [(tag, list(attributes)) for tag, attributes in page.elements] == [
        (tag, list(attributes)) for tag, attributes in plain.elements
    ]


def test_a_strip_shows_itself_in_a_notebook() -> None:
    for shown in (token_strip(effects()), strip(" Tower")):
        assert shown._repr_html_() == str(shown)
