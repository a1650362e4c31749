"""Puts the demo's figures and its main numbers into `figures/`, and fails where they differ from those that were there.

Numbers are compared first: figures draw them, and pixels also depend on the release of matplotlib. Figures then may differ by
little: antialiasing, but not a bar or a word.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import image

NAMES = ("effect", "tracing", "outcomes", "readout", "spectrum", "dose", "interchange")
NUMBERS = "results.json"
_KEPT = ("outcomes", "effect", "tracing", "dissection", "n_parameters", "reload_difference")
_LARGE = ("each", "each_control", "prompts")
"""Of a map: what is not drawn."""
_CLOSE = 5e-3
"""Largest difference of two numbers, or of a large one in parts of it. A rerun on the same processor gives 0."""
_FAINT = 0.01
"""Largest mean difference of two pictures, of which 1 is black beside white. A moved bar of a figure gives 0.02."""


def main_numbers(results: dict[str, Any]) -> dict[str, Any]:
    """The part of the demo's numbers that the README and its figures show, to five digits."""

    def small(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: small(item) for name, item in value.items() if name not in _LARGE}
        if isinstance(value, list):
            return [small(item) for item in value]
        return float(f"{value:.5g}") if isinstance(value, float) else value

    found: dict[str, Any] = small({name: results[name] for name in _KEPT})
    return found


def parted(before: Any, after: Any, place: str = "") -> list[str]:
    """Where two documents of numbers differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = [*before, *(name for name in after if name not in before)]
        return [line for name in names for line in parted(before.get(name), after.get(name), f"{place}/{name}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for index, (one, other) in pairs for line in parted(one, other, f"{place}/{index}")]
    numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in (before, after))
    if numbers and math.isclose(before, after, rel_tol=_CLOSE, abs_tol=_CLOSE):
        return []
    return [] if before == after else [f"{place}: was {before!r}, is {after!r}"]


def look_apart(before: Path, after: Path) -> str:
    """How two pictures differ; empty if they do not."""
    first, second = (image.imread(file)[..., :3] for file in (before, after))
    if first.shape != second.shape:
        return f"was {first.shape[1]} x {first.shape[0]} pixels, is {second.shape[1]} x {second.shape[0]}"
    apart = float(np.abs(first - second).mean())
    return f"differs by {apart:.3f} of black and white on average" if apart > _FAINT else ""


def main(demo: Path, figures: Path) -> int:
    figures.mkdir(exist_ok=True)
    fresh = main_numbers(json.loads((demo / NUMBERS).read_text()))
    kept, found = figures / NUMBERS, []
    if kept.exists():
        found += [f"{kept}{line}" for line in parted(json.loads(kept.read_text()), fresh)]
    kept.write_text(json.dumps(fresh, indent=1, ensure_ascii=True) + "\n")
    for name in NAMES:
        before, after = figures / f"{name}.png", demo / "figures" / f"{name}.png"
        if before.exists() and (why := look_apart(before, after)):
            found.append(f"{before}: {why}")
        shutil.copyfile(after, before)
    if found:
        print("These were not what the demo gives now; the new ones are in their place:", *found[:40], sep="\n")
    return min(len(found), 1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
