"""Adds files of the repository under their own paths, so that a link works in the repository and on the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[2]
PATTERNS = (
    "*.md",
    "figures/*.png",
    "reftlens/organisms/*/README.md",
    "tutorials/*.md",
    "tutorials/*.ipynb",
    "tutorials/concepts/*",
    "tutorials/guides/*",
    "tutorials/reference/*",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    for pattern in PATTERNS:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """In a table, GitHub wants a bar inside code escaped, and Python-Markdown would show the backslash."""
    rows = re.compile(r"^\|.*$", re.MULTILINE)
    return rows.sub(lambda row: re.sub(r"`[^`]*`", lambda code: code[0].replace("\\|", "|"), row[0]), markdown)
