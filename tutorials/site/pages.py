"""Adds files of the repository under their own paths, so that a link works in the repository and on the site."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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
