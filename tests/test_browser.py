"""Pages in a real browser: nothing leaves them, nothing that a string brought in is alive, light and dark are both read.

Each check has a page beside it in which the same strings are not escaped, and which must fail it.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from made import every_result
from matplotlib import image
from test_report import report_of, strip

import reftlens as rl
from reftlens.plot.page import Report, Section, render

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason=f"needs one of these browsers on the PATH: {', '.join(BROWSERS)}"),
]
HOSTILE = (
    '<script>document.title = "alive"</script>',
    "<img src=http://evil.example/image.png onerror=\"document.title='alive'\">",
    '" onmouseover="document.title=\'alive\'" style="background:url(http://evil.example/style.png)',
    "<style>@import url(http://evil.example/import.css); body { background: red }</style>",
    "<link rel=stylesheet href=http://evil.example/link.css>",
    "<svg onload=\"document.title='alive'\"><image href=http://evil.example/svg.png /></svg>",
    "<iframe src=http://evil.example/frame></iframe>",
    "</td></tr></table></title></style><b>&amp;\u202e",
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


def hostile_report() -> str:
    return render(Report("harmless", "lead", tuple(s for text in HOSTILE for s in report_of(text).sections), {}))


def hostile_notebook() -> str:
    """Every result, one below the other, in a page without any policy that would hold a living string back."""
    shown = [sample._repr_html_() for text in HOSTILE for sample in every_result(text)]
    shown += [rl.Span(text)._repr_html_() for text in HOSTILE] + [strip(text)._repr_html_() for text in HOSTILE]
    return f'<meta charset="utf-8"><title>harmless</title>{"".join(shown)}'


@pytest.mark.parametrize("make", [hostile_report, hostile_notebook])
def test_hostile_strings_are_inert_and_nothing_leaves_the_page(make, browse, requests) -> None:
    page = make()
    seen = browse(page)
    document = Document(seen)
    assert document.title == "harmless"
    assert requests == []
    # The browser has made of it what was written, and nothing more.
    for tag in ("script", "iframe", "link", "svg", "b", "object"):
        assert document.of(tag) == [], tag
    assert not any(name.startswith("on") for _, attributes in document.elements for name in attributes)
    assert HOSTILE[0] in document.text


def test_the_checks_find_a_page_that_is_alive(browse, requests) -> None:
    seen = browse('<meta charset="utf-8"><title>harmless</title>' + "".join(HOSTILE))
    assert Document(seen).title == "alive"
    assert {"/image.png", "/frame", "/svg.png"} <= set(requests)


def test_the_policy_holds_what_escaping_would_miss(browse, requests) -> None:
    alive = render(report_of("harmless")).replace("<main>", "<main>" + HOSTILE[0] + HOSTILE[1])
    seen = browse(alive)
    assert Document(seen).of("script")
    assert Document(seen).title == "harmless"
    assert requests == []


def test_hover_texts_are_there(browse) -> None:
    seen = Document(browse(render(Report("t", "l", (Section("s", strips=(("caption", strip(" Tower", " a")),)),), {}))))
    titles = [span["title"] for span in seen.of("span") if "title" in span]
    assert titles == ["0 resid_post: |Δ|/|h| = 0.5; 1 resid_post: |Δ|/|h| = 0.25"] * 2


def test_the_page_follows_light_and_dark(browse, tmp_path) -> None:
    page, corners, cards = render(report_of("harmless")), {}, {}
    for name, scheme in (("dark", 0), ("light", 1)):
        shot = tmp_path / f"{name}.png"
        browse(
            page, f"--screenshot={shot}", "--window-size=900,1400", f"--blink-settings=preferredColorScheme={scheme}"
        )
        pixels = image.imread(shot)[..., :3]
        corners[name] = float(pixels[5, 5].mean())
        cards[name] = float((pixels.reshape(-1, 3).min(axis=1) == 1).mean())
    assert corners["light"] == 1.0
    assert corners["dark"] < 0.2
    # Pictures are drawn for white, and stay on it.
    assert cards["dark"] > 0.03
