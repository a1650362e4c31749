"""`make docs`: the API pages, made from the docstrings by pdoc.

python tests/api_pages.py docs
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pdoc

import reftlens

MODULES = (
    "reftlens",
    "reftlens.results",
    "reftlens.training.lofit",
    "reftlens.edit.pyreft",
    "reftlens.organisms.landmarks",
)


def write(directory: Path) -> None:
    """Writes one page for each public module.

    Raises:
        UserWarning: for anything that pdoc cannot resolve.
    """
    # Names that are loaded on first use are found by pdoc once they are there.
    for name in reftlens.__all__:
        setattr(reftlens, name, getattr(reftlens, name))
    pdoc.render.configure(docformat="google", show_source=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc(*MODULES, output_directory=directory)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
