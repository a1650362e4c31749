"""Pages in a real browser: nothing leaves them, nothing that a string brought in is alive, all of it is read and answers.

Each check has a page beside it that must fail it.
"""

from __future__ import annotations

import html
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from chromium import BROWSER, NAMES, Chromium
from made import every_result, made_dose, made_graph, made_projection
from matplotlib import image
from test_report import DASH, MINUS, dots, effect, report_of, size, strip

import reftlens as rl
from reftlens.display import framed
from reftlens.plot.page import Picture, Report, Section, render
from reftlens.results import Finding

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason=f"needs one of these browsers on the PATH: {', '.join(NAMES)}"),
]
JUPYTERLAB = shutil.which("jupyter-lab")
HOSTILE = (
    '<script>document.title = "alive"</script>',
    "<img src=http://evil.example/image.png onerror=\"document.title='alive'\">",
    '" onmouseover="document.title=\'alive\'" style="background:url(http://evil.example/style.png)',
    "<style>@import url(http://evil.example/import.css); body { background: red }</style>",
    "<link rel=stylesheet href=http://evil.example/link.css>",
    "<svg onload=\"document.title='alive'\"><image href=http://evil.example/svg.png /></svg>",
    "<iframe src=http://evil.example/frame></iframe>",
    "</td></tr></table></title></style><b>&amp;\u202e",
    "</script><script>document.title = 'alive'</script>",
    "__proto__",
)


class Document(HTMLParser):
    """The document that a browser has made: its elements, and its text by the element that holds it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.title = ""
        self.text = ""
        self._latest = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._latest = tag
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._latest == "title" and not self.title:
            self.title = data

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def requests() -> Iterator[list[str]]:
    """Paths that the browser asked any host for: all names lead to a server here."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # The browser asks its maker for the time; a page cannot know of that.
            if not self.headers.get("Host", "").endswith((".google.com", ".googleapis.com", ".gvt1.com")):
                asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        asked.append(f"127.0.0.1:{server.server_port}")
        yield asked
        server.shutdown()
        thread.join()


@pytest.fixture
def browse(tmp_path: Path, requests: list[str]) -> Callable[..., str]:
    """Opens a page from a file and returns the document as the browser has it after loading."""
    address = requests.pop()

    def run(page: str, *arguments: str) -> str:
        file = tmp_path / "page.html"
        file.write_text(page, encoding="utf-8")
        command = [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}",
            f"--host-resolver-rules=MAP * {address}", "--virtual-time-budget=3000", *(arguments or ("--dump-dom",)),
            file.as_uri(),
        ]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout

    return run


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    # Frames stay in the page's process, where the tests look into them.
    chromium = Chromium("--disable-features=IsolateSandboxedIframes")
    yield chromium
    chromium.close()


@pytest.fixture
def opened(browser: Chromium, tmp_path: Path) -> Callable[..., Chromium]:
    """Opens a page and returns the browser with it."""

    def run(page: str, **how: bool | int) -> Chromium:
        file = tmp_path / "page.html"
        file.write_text(page, encoding="utf-8")
        browser.open(file, **how)
        return browser

    return run


def hostile_report() -> str:
    found = [report_of(text) for text in HOSTILE]
    sections = tuple(section for report in found for section in report.sections)
    return render(Report("harmless", "lead", sections, {}, tuple(f for report in found for f in report.findings)))


def hostile_notebook() -> str:
    """Every result, one below the other, in a page without any policy that would hold a living string back."""
    shown = [sample._repr_html_() for text in HOSTILE for sample in every_result(text)]
    shown += [rl.Span(text)._repr_html_() for text in HOSTILE] + [strip(text)._repr_html_() for text in HOSTILE]
    return f'<meta charset="utf-8"><title>harmless</title>{"".join(shown)}'


def page_of_all() -> str:
    """A page with one of everything."""
    table = pd.DataFrame({"name": ["b", "a", "c"], "value": [-2.0, float("nan"), 10.0]})
    section = Section(
        "Where does it act?",
        ("The effect, its control and its null.",),
        (Picture("spectrum", dots(6, 3), "A picture."),),
        (("A table", table), ("Long", pd.DataFrame({"n": range(40)}))),
        (("Sizes", size(" The", " Tower", " stands", " in")),),
        (("Effect of each cell", effect("<|endoftext|>", " Tower", " stands", " in", " the", " city", " of")),),
        (("More and less", made_dose()),),
        planes=(("Moves", made_projection()),),
        graphs=(("Graph", made_graph()),),
        name="where",
    )
    findings = (Finding("Does it work?", "Yes.", "works"), Finding("Where does it act?", "There.", "where", null="0."))
    sections = (section, Section("What else?", ("Nothing.",), name="works"))
    return render(Report("A page", "lead", sections, {"seed": 0}, findings))


@pytest.mark.parametrize("make", [hostile_report, hostile_notebook])
def test_hostile_strings_are_inert_and_nothing_leaves_the_page(make, browse, requests) -> None:
    seen = browse(make())
    document = Document(seen)
    assert document.title == "harmless"
    assert requests == []
    # The browser has made of it what was written, and nothing more.
    for tag in ("iframe", "link", "b", "object", "image"):
        assert document.of(tag) == ([{}] * seen.count("<b>") if tag == "b" and make is hostile_report else []), tag
    assert len(document.of("script")) == (2 if make is hostile_report else 0)
    assert not any(name.startswith("on") for _, attributes in document.elements for name in attributes)
    assert HOSTILE[0] in document.text


def test_hostile_strings_are_inert_in_what_answers_the_reader(opened) -> None:
    browser = opened(hostile_report())
    before = browser.value("document.querySelectorAll('body *').length")
    browser.value("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    # Every prompt of every map, every way to show it, every tip, every sorted column and every dose.
    browser.value(
        """for (const control of document.querySelectorAll('select, input')) {
          const values = control.options ? [...control.options].map((_, at) => at) : control.type === 'range' ? [0, 1, 2] : [0];
          for (const value of values) {
            if (control.options) control.selectedIndex = value;
            else if (control.type === 'range') control.value = value;
            else control.checked = true;
            for (const kind of ['input', 'change']) control.dispatchEvent(new Event(kind, { bubbles: true }));
          }
        }
        window.tips = [...document.querySelectorAll('[data-tip]')].map(one => {
          one.dispatchEvent(new PointerEvent('pointerover', { bubbles: true }));
          return document.getElementById('tip').textContent;
        });
        for (const button of document.querySelectorAll('th button')) { button.click(); button.click(); }"""
    )
    tips = browser.value("window.tips")
    assert any("document.title" in tip for tip in tips)
    assert not any("\u202e" in tip for tip in tips)
    assert browser.value("document.querySelectorAll('body *').length") == before
    assert browser.value("document.title") == "harmless"
    assert browser.value("window.refused") == []
    assert browser.said == []


def test_the_checks_find_a_page_that_is_alive(browse, requests) -> None:
    seen = browse('<meta charset="utf-8"><title>harmless</title>' + "".join(HOSTILE))
    assert Document(seen).title == "alive"
    assert {"/image.png", "/frame", "/svg.png"} <= set(requests)


def test_the_policy_holds_what_escaping_would_miss(browse, requests, opened) -> None:
    alive = render(report_of("harmless")).replace(
        "<main>", "<main>" + HOSTILE[0] + HOSTILE[1] + "<p style='color:red'>"
    )
    seen = browse(alive)
    assert len(Document(seen).of("script")) == 3
    assert Document(seen).title == "harmless"
    assert requests == []
    refused = opened(alive).value("window.refused")
    assert sorted({one.split()[0] for one in refused}) == [
        "img-src",
        "script-src-attr",
        "script-src-elem",
        "style-src-attr",
    ]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_cut_or_overlaps_and_the_console_is_empty(width: int, dark: bool, opened) -> None:
    long = " and so on through a long and unremarkable sentence about a tower in a city"
    prompts = Section("s", maps=(("Long prompts", effect(" The", long, prompts=8)),))
    for page in (page_of_all(), render(report_of(long * 2)), render(Report("t", "l", (prompts,), {}))):
        browser = opened(page, width=width, dark=dark)
        browser.value("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.value(CUT) == []
        assert browser.value(OVERLAPPING) == []
        assert browser.said == []
        assert browser.value("window.refused") == []


CUT = """(() => {
  const cut = [];
  for (const one of document.querySelectorAll('body *')) {
    const box = one.getBoundingClientRect();
    if (!box.width || one.closest('.scroll, .card, option, [hidden]')) continue;
    if (box.left < -1 || box.right > document.documentElement.clientWidth + 1) cut.push(one.outerHTML.slice(0, 80));
  }
  for (const text of document.querySelectorAll('svg text')) {
    const [box, room] = [text.getBoundingClientRect(), text.ownerSVGElement.getBoundingClientRect()];
    if (box.left < room.left - 1 || box.right > room.right + 1 || box.bottom > room.bottom + 1) cut.push(text.textContent);
  }
  return cut;
})()"""
"""Elements that leave the window other than in what scrolls, and texts that leave their drawing."""

OVERLAPPING = """(() => {
  const words = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const held = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || held.closest('script, select, output, [hidden], .grid tbody th')) continue;
    const range = document.createRange();
    range.selectNodeContents(walk.currentNode);
    for (const box of range.getClientRects()) if (box.width > 1) words.push([box, walk.currentNode.data.trim().slice(0, 30)]);
  }
  const found = [];
  words.forEach(([a, first], place) => {
    for (const [b, second] of words.slice(0, place)) {
      const [across, down] = [Math.min(a.right, b.right) - Math.max(a.left, b.left), Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top)];
      if (across > 2 && down > 4) found.push([first, second]);
    }
  });
  return found;
})()"""
"""Pairs of texts whose boxes share more than the room between lines."""


def test_the_checks_of_layout_find_what_is_cut_and_what_overlaps(opened) -> None:
    page = "<p style='width:3000px'>wide</p><p style='position:absolute;top:0;left:0'>one</p><p style='position:absolute;top:2px;left:0'>two</p>"
    browser = opened("<!doctype html>" + page)
    assert len(browser.value(CUT)) == 1
    assert ["two", "one"] in browser.value(OVERLAPPING)


def test_pointing_at_a_cell_a_token_or_a_term_says_its_numbers(opened) -> None:
    browser = opened(page_of_all())
    browser.value("document.querySelectorAll('details').forEach(one => { one.open = true; })")

    def tip(selector: str, place: int = 0) -> str:
        browser.point(*browser.middle(selector, place))
        return browser.value("document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent")

    assert tip(".grid td[data-tip]") == (
        f"L4 resid_post @ all, token [last subject]*, mean of 3 prompts: measured {MINUS}0.250, control {MINUS}0.025, difference {MINUS}0.225"
    )
    assert tip(".token", 1) == "0 resid_post, token 1 ·Tower: change of 0.5 of the activation's length"
    assert tip(".move circle:last-child", 3).startswith("a token (to stay): from (")
    assert tip(".inside .term", 0).startswith("How much the edit raises the wanted answer")
    browser.press("Escape")
    assert browser.value("document.getElementById('tip').hidden")
    assert tip("h1") == ""
    assert browser.value("document.querySelectorAll('[title]').length") == 0


def test_the_arrow_keys_move_between_cells(opened) -> None:
    browser = opened(page_of_all())
    browser.value("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    browser.value("document.querySelector('.grid td[data-tip]').focus()")

    def at() -> list[int]:
        return browser.value("[document.activeElement.parentElement.rowIndex, document.activeElement.cellIndex]")

    places = [at()]
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "ArrowUp"):
        browser.press(key)
        places.append(at())
    assert places == [[1, 1], [1, 2], [2, 2], [2, 1], [1, 1], [1, 1]]
    assert "mean of 3 prompts" in browser.value("document.getElementById('tip').textContent")
    # The map is one stop of the tab key.
    assert browser.value("document.querySelectorAll('.grid td[tabindex=\"0\"]').length") == 1
    browser.press("Tab")
    assert browser.value("document.activeElement.closest('.grid')") is None


def test_a_map_switches_between_measured_control_and_difference_and_between_prompts(opened) -> None:
    browser = opened(page_of_all())
    browser.value("document.querySelectorAll('details').forEach(one => { one.open = true; })")

    def cells() -> list[str]:
        return browser.value(
            "[...document.querySelectorAll('.grid tbody tr:last-child td')].map(one => one.textContent)"
        )

    assert cells() == ["0.50"] * 7
    browser.click(*browser.middle(".switch input[type=radio]", 1))
    assert cells() == ["0.05"] * 7
    browser.click(*browser.middle(".switch input[type=radio]", 2))
    assert cells() == ["0.45"] * 7
    browser.click(*browser.middle(".switch input[type=radio]", 0))
    browser.value(
        "const pick = document.querySelector('select'); pick.selectedIndex = 3; pick.dispatchEvent(new Event('change', { bubbles: true }))"
    )
    assert cells() == ["0.60"] * 7
    heads = browser.value("[...document.querySelectorAll('.grid thead th')].map(one => one.textContent)")
    assert heads[:2] == ["<|endoftext|>2*", "·Tower"]


def test_columns_sort_and_say_so_and_a_slider_reads_the_doses(opened) -> None:
    browser = opened(page_of_all())
    browser.value("document.querySelectorAll('details').forEach(one => { one.open = true; })")

    def column(place: int) -> list[str]:
        return browser.value(
            f"[...document.querySelector('table.data').tBodies[0].rows].map(row => row.cells[{place}].textContent)"
        )

    heads = "[...document.querySelectorAll('table.data')[0].querySelectorAll('th')].map(one => one.getAttribute('aria-sort'))"
    browser.click(*browser.middle("table.data th button", 1))
    assert column(1) == [f"{MINUS}2.00", "10.00", DASH]
    assert browser.value(heads) == [None, "ascending"]
    browser.click(*browser.middle("table.data th button", 1))
    assert column(0) == ["c", "b", "a"]
    assert browser.value(heads) == [None, "descending"]
    browser.click(*browser.middle("table.data th button", 0))
    assert column(0) == ["a", "b", "c"]
    said = "document.querySelector('figure.dose output').textContent"
    before = browser.value(said)
    browser.value("document.querySelector('figure.dose input').focus()")
    browser.press("ArrowLeft")
    assert browser.value(said) != before
    assert browser.value("document.querySelector('figure.dose input').getAttribute('aria-valuetext')") == browser.value(
        said
    )


def test_a_finding_opens_its_section(opened) -> None:
    browser = opened(page_of_all())
    folded = "[...document.querySelectorAll('details.part')].map(one => one.open)"
    assert not any(browser.value(folded))
    browser.click(*browser.middle(".findings a", 1))
    assert browser.value(folded)[0]
    assert 0 <= browser.value("document.getElementById('where').getBoundingClientRect().top") < 900


def test_without_scripts_the_tables_stand_as_they_are(opened) -> None:
    browser = opened(page_of_all(), scripts=False)
    found = browser.ask("DOM.getDocument", depth=-1, pierce=False)
    text = browser.ask("DOM.getOuterHTML", nodeId=found["root"]["nodeId"])["outerHTML"]
    document = Document(text)
    assert "0.50" in document.text
    assert [one for one in document.of("div") if one.get("class") == "switch" and "hidden" not in one] == []
    assert any("measured 0.500" in cell.get("title", "") for cell in document.of("td"))
    assert all(one.get("scope") in ("row", "col") for one in document.of("th"))
    assert document.of("button") == []


@pytest.mark.parametrize("sandbox", ["allow-scripts", ""])
def test_a_sandboxed_frame_of_a_notebook_works_and_reaches_nothing(sandbox: str, opened) -> None:
    page = html.escape(page_of_all(), quote=True)
    browser = opened(
        f'<!doctype html><title>notebook</title><iframe sandbox="{sandbox}" srcdoc="{page}" width=900 height=600></iframe>'
    )
    frames = browser.ask("Page.getFrameTree")["frameTree"]["childFrames"]
    world = browser.ask("Page.createIsolatedWorld", frameId=frames[0]["frame"]["id"])["executionContextId"]

    def inside(expression: str) -> object:
        return browser.ask("Runtime.evaluate", expression=expression, contextId=world, returnByValue=True)[
            "result"
        ].get("value")

    assert inside("document.querySelector('h1').textContent") == "A page"
    ready = inside("performance.getEntriesByName('ready').length")
    assert ready == bool(sandbox)
    assert inside("self.origin") == "null"
    if sandbox:
        inside("document.querySelectorAll('.findings a')[1].click()")
        assert inside("document.querySelector('details.part').open")
        assert inside("location.href").startswith("about:srcdoc")
        assert [one for one in browser.said if "sandbox" not in one.lower()] == []


@pytest.mark.parametrize(("theme", "dark"), [("true", False), ("false", True)])
def test_a_page_in_a_notebook_follows_the_notebooks_theme(theme: str, dark: bool, browse, tmp_path) -> None:
    body = f"<body data-jp-theme-light={theme} style='margin:0;background:{'#111' if dark else '#fff'}'>"
    shot = tmp_path / "notebook.png"
    how = ("--window-size=900,800", "--blink-settings=preferredColorScheme=1")
    browse(f"<!doctype html>{body}{framed('one line', page_of_all())}", f"--screenshot={shot}", *how)
    white = float((image.imread(shot)[..., :3].min(axis=2) == 1).mean())
    assert white < 0.02 if dark else white > 0.5


@pytest.fixture
def jupyterlab(tmp_path: Path) -> Iterator[Callable[[str, str], str]]:
    """Gives the address of a notebook with one stored output, which nobody has trusted yet, in JupyterLab with a theme."""
    settings = tmp_path / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    own = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    command = [
        str(JUPYTERLAB), "--allow-root", "--no-browser", "--ip=127.0.0.1", f"--port={address.split(':')[-1]}",
        "--ServerApp.port_retries=0", "--LabApp.expose_app_in_browser=True", "--IdentityProvider.token=", f"--ServerApp.root_dir={tmp_path / 'notebooks'}",
        f"--LabApp.user_settings_dir={tmp_path / 'settings'}", f"--LabApp.workspaces_dir={tmp_path / 'workspaces'}",
    ]  # fmt: skip
    server = subprocess.Popen(command, env=os.environ | own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def run(shown: str, theme: str) -> str:
        (settings / "themes.jupyterlab-settings").write_text(json.dumps({"theme": theme}))
        (settings / "notification.jupyterlab-settings").write_text(json.dumps({"fetchNews": "false"}))
        output = {"output_type": "display_data", "metadata": {}, "data": {"text/html": shown}}
        cell = {"id": "a", "cell_type": "code", "execution_count": 1, "metadata": {}, "source": "", "outputs": [output]}
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": [cell]}
        (tmp_path / "notebooks" / "page.ipynb").write_text(json.dumps(notebook))
        for _ in range(600):
            try:
                direct.open(f"{address}/api").close()
                break
            except OSError:
                assert server.poll() is None, "JupyterLab ended"
                time.sleep(0.1)
        return f"{address}/lab/tree/page.ipynb"

    yield run
    server.terminate()
    try:
        server.wait(timeout=20)
    except subprocess.TimeoutExpired:
        # It may wait for a page that is gone, and holds nothing but the folder of this test.
        server.kill()
        server.wait(timeout=60)


@pytest.mark.skipif(JUPYTERLAB is None, reason="needs jupyter-lab on the PATH")
@pytest.mark.parametrize("dark", [False, True])
def test_jupyterlab_shows_the_page_once_the_notebook_is_trusted(dark: bool, jupyterlab) -> None:
    # The system prefers the other theme, and frames have processes of their own, as with users.
    browser = Chromium(f"--blink-settings=preferredColorScheme={int(dark)}", "--no-proxy-server")
    try:
        address = jupyterlab(framed("<b>one</b> line", page_of_all()), f"JupyterLab {'Dark' if dark else 'Light'}")
        browser.ask("Emulation.setDeviceMetricsOverride", width=1400, height=1000, deviceScaleFactor=1, mobile=False)
        # JupyterLab offers commands for the notebook that has the focus.
        browser.ask("Emulation.setFocusEmulationEnabled", enabled=True)
        browser.ask("Page.navigate", url=address)
        output = "document.querySelector('.jp-OutputArea-output')"
        text = browser.until(f"{output} && {output}.innerText")
        assert text.startswith("<b>one</b> line\n")
        assert "choose Trust Notebook in the command palette" in text
        assert browser.value(f"{output}.querySelectorAll('iframe, script, style').length") == 0
        trust(browser)
        frame = f"{output}.querySelector('iframe')"
        assert browser.until(f"{frame} && {frame}.getAttribute('sandbox')") == "allow-scripts"
        assert not [one for one in browser.said if "sandbox" in one.lower() or "policy" in one.lower()]
        look_inside(browser, frame, dark)
    finally:
        browser.close()


def trust(browser: Chromium) -> None:
    """Chooses JupyterLab's Trust Notebook, and agrees."""
    browser.until(
        "jupyterapp.restored.then(() => { jupyterapp.shell.activateById(document.querySelector('.jp-NotebookPanel').id); "
        "return jupyterapp.commands.isEnabled('notebook:trust'); })"
    )
    assert browser.value("jupyterapp.commands.label('notebook:trust')") == "Trust Notebook"
    browser.value("void jupyterapp.commands.execute('notebook:trust')")
    browser.until(
        "document.querySelector('.jp-Dialog .jp-mod-accept')?.click(), !!document.querySelector('.jp-OutputArea-output iframe')"
    )


def look_inside(browser: Chromium, frame: str, dark: bool) -> None:
    """Checks the page in a frame: it is alone, has the theme, answers the pointer and says nothing on the console."""
    corner = browser.value(
        f"(() => {{ const b = {frame}.getBoundingClientRect(); return [b.left + 1, b.top + 1]; }})()"
    )
    outside = browser.session
    browser.said.clear()
    browser.enter("iframe")
    inside = browser.session
    browser.until("performance.getEntriesByName('ready').length")
    assert browser.value("self.origin") == "null"
    assert browser.value("matchMedia('(prefers-color-scheme: dark)').matches") == dark
    assert browser.value("getComputedStyle(document.body).backgroundColor === 'rgb(255, 255, 255)'") != dark
    browser.value("document.querySelector('details.part').open = true")
    x, y = browser.middle(".map td[data-tip]")
    browser.session = outside
    browser.point(corner[0] + x, corner[1] + y)
    browser.session = inside
    assert "measured" in browser.until("document.getElementById('tip').textContent")
    # JupyterLab around it may still be reaching its kernel.
    assert [one for one in browser.said if not one.startswith("Starting WebSocket")] == []
    # What the policy refuses is said.
    browser.value("document.body.append(Object.assign(new Image(), { src: 'http://127.0.0.1/a.png' }))")
    browser.until("document.images[document.images.length - 1].complete")
    assert "Content Security Policy" in " ".join(browser.said)


def test_the_page_is_ready_at_once_and_small(opened) -> None:
    section = Section("s", maps=tuple((f"map {n}", effect(*map(str, range(24)), prompts=12)) for n in range(20)))
    page = render(Report("t", "l", (section,), {}))
    assert len(page.encode()) < 2_000_000
    browser = opened(page)
    # 0.2 s on an idle machine; other processes share this one.
    assert browser.value("performance.getEntriesByName('ready')[0].startTime") < 8000


def test_the_page_follows_light_and_dark(browser, tmp_path, opened) -> None:
    corners, cards = {}, {}
    page = render(replace(report_of("harmless"), findings=()))
    for name in ("light", "dark"):
        shot = opened(page, dark=name == "dark", width=900).picture(tmp_path / f"{name}.png")
        pixels = image.imread(shot)[..., :3]
        corners[name] = float(pixels[5, 5].mean())
        cards[name] = float((pixels.reshape(-1, 3).min(axis=1) == 1).mean())
    assert corners["light"] == 1.0
    assert corners["dark"] < 0.2
    # Pictures are drawn for white, and stay on it.
    assert cards["dark"] > 0.005


def test_numbers_of_the_page_are_data_and_nothing_else(opened) -> None:
    browser = opened(hostile_report())
    assert json.loads(browser.value("document.getElementById('data').textContent"))
    assert browser.value("({}).polluted") is None
