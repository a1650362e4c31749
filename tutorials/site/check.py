"""Checks the site that was built: links and anchors, that it loads nothing from elsewhere, and that the API is complete.

python tutorials/site/check.py docs
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from api import every_anchor

LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("link", "href"), ("source", "src")}
"""What a browser fetches by itself."""


class Page(HTMLParser):
    """The anchors of a page, and where it leads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        for name in ("href", "src"):
            if name in values:
                (self.loaded if (tag, name) in LOADED else self.links).append(values[name])


def problems(site: Path) -> list[str]:
    """One line for each thing that is wrong."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    found = [] if pages else [f"{site}: no page"]
    for path, page in pages.items():
        if path.name == "404.html":  # its links start from the root of a server
            continue
        where = path.relative_to(site)
        found += [f"{where}: loads {link} from elsewhere" for link in page.loaded if outside(link)]
        for link in page.links + page.loaded:
            if not outside(link) and not leads_somewhere(link, path, pages):
                found.append(f"{where}: {link} leads nowhere")
    anchors = set().union(*(page.anchors for page in pages.values()))
    return found + [
        f"{name} is on no page of the API" for name, anchor in every_anchor().items() if anchor not in anchors
    ]


def outside(link: str) -> bool:
    return bool(urlsplit(link).scheme or urlsplit(link).netloc) and not link.startswith("data:")


def leads_somewhere(link: str, path: Path, pages: dict[Path, Page]) -> bool:
    if link.startswith("data:"):
        return True
    parts = urlsplit(link)
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not parts.fragment:
        return target.exists()
    return target in pages and unquote(parts.fragment) in pages[target].anchors


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]).resolve())
    print("\n".join(wrong), end="\n" if wrong else "")
    sys.exit(bool(wrong))
