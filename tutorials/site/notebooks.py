"""Makes a page of each notebook from its committed outputs. Nothing is executed."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

FOLDER = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    for path in sorted(FOLDER.glob("*.ipynb")):
        for name, content in converted(path):
            files.append(File.generated(config, f"tutorials/{name}", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Makes a link to a notebook lead to its page; one with attributes downloads it."""
    return re.sub(r"\.ipynb\)(?!\{)", ".md)", markdown)


def converted(path: Path) -> Iterator[tuple[str, str | bytes]]:
    """Yields the figures of a notebook and then its page, as (path, content)."""
    parts = []
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for index, output in enumerate(cell.get("outputs", ())):
            image = output.get("data", {}).get("image/png")
            if image is None:
                parts.append(shown(output))
                continue
            name = f"{path.stem}/cell-{number}-{index}.png"
            yield name, base64.b64decode("".join(image))
            width = output["metadata"].get("image/png", {}).get("width")
            parts.append(f"![Output of the code above]({name})" + (f'{{ width="{width}" }}' if width else ""))
    parts.append(f"[Download this notebook]({path.name}){{ .md-button }}")
    yield f"{path.stem}.md", "\n\n".join(parts)


def shown(output: dict[str, Any]) -> str:
    """The HTML of an output: its own, or its text."""
    data = output.get("data", {})
    text = "".join(output.get("text", "") or data["text/plain"])
    inside = "".join(data.get("text/html", "")) or f"<pre>{html.escape(text)}</pre>"
    return f'<div class="output">\n{inside}\n</div>'
