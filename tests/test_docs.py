"""Every public name says what it is, what it takes and what it raises; and the site shows it."""

from __future__ import annotations

import ast
import inspect
import json
import re
import runpy
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import reftlens as rl

PACKAGES = {
    "rl": rl,
    "rl.analysis": rl.analysis,
    "rl.plot": rl.plot,
    "rl.objectives": rl.objectives,
    "rl.serving": rl.serving,
}
SITE = Path(__file__).parent.parent / "tutorials" / "site"
NOT_CODE = {"__version__"} | {name for name in rl.__all__ if inspect.ismodule(getattr(rl, name))}


def documented() -> Iterator[tuple[str, Any, str]]:
    """(name, function, its documentation) of every public function, method and constructor written here."""
    for package, module in PACKAGES.items():
        for name in sorted(set(module.__all__) - NOT_CODE):
            thing = getattr(module, name)
            if inspect.isclass(thing):
                yield from methods(f"{package}.{name}", thing)
            else:
                yield f"{package}.{name}", thing, inspect.getdoc(thing) or ""


def methods(name: str, kind: type) -> Iterator[tuple[str, Any, str]]:
    written = {key: inspect.unwrap(getattr(value, "__func__", value)) for key, value in vars(kind).items()}
    for key, value in written.items():
        # A method that fulfils its parent's promise is documented there.
        inherited = any(key in vars(parent) for parent in kind.__mro__[1:] if parent.__module__.startswith("reftlens"))
        if inspect.isfunction(value) and not key.startswith("_") and not inherited:
            yield f"{name}.{key}", value, inspect.getdoc(getattr(kind, key)) or ""


CASES = list(documented())
each = pytest.mark.parametrize(("function", "doc"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])


def arguments(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def raises(function: Any) -> bool:
    """Whether its own lines raise something that a caller may meet."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return any(isinstance(node, ast.Raise) and node.exc is not None for node in ast.walk(tree))


@each
def test_it_says_what_it_takes_and_what_it_raises(function, doc) -> None:
    assert doc, "no docstring"
    missing = [name for name in arguments(function) if not re.search(rf"^\s*\*?{name}: ", doc.split("Args:")[-1], re.M)]
    assert "Args:" in doc or not arguments(function), f"no Args: {arguments(function)}"
    assert not missing, f"Args lacks {missing}"
    assert "Raises:" in doc or not raises(function), "it raises, and does not say so"


@pytest.mark.parametrize("name", sorted(set(rl.__all__) - NOT_CODE))
def test_every_public_name_says_what_it_is(name) -> None:
    own = getattr(rl, name).__doc__
    assert own
    # A dataclass without a docstring is given its own signature.
    assert not own.startswith(f"{name}(")


@pytest.mark.parametrize(
    "name",
    ["Affine", "Prompts", "str_tokens", "analysis.edited_activations", "results.Result", "results.SiteResult"],
)
def test_what_classes_and_analyses_of_your_own_build_on_is_public(name) -> None:
    room, _, own = name.rpartition(".")
    module = getattr(rl, room) if room else rl
    assert own in module.__all__
    assert getattr(module, own).__doc__


def test_the_check_sees_what_is_missing() -> None:
    def undocumented(first: int, second: int) -> int:
        """Adds.

        Args:
            first: a number.
        """
        if first < 0:
            raise ValueError("too small")
        return first + second

    assert raises(undocumented)
    with pytest.raises(AssertionError, match="second"):
        test_it_says_what_it_takes_and_what_it_raises(undocumented, inspect.getdoc(undocumented))


def test_the_api_pages_hold_every_public_name() -> None:
    """The site is built without this package; here the names that it reads from the sources meet the real ones."""
    names = set(runpy.run_path(str(SITE / "api.py"))["every_anchor"]())
    for package, module in PACKAGES.items():
        known = {f"{package.replace('rl', 'reftlens', 1)}.{name}" for name in set(module.__all__) - NOT_CODE}
        assert not known - names, package


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ('<a href="other.html#there">', ""),
        ('<a href="https://elsewhere.example/">', ""),
        ('<img src="data:image/png;base64,AA">', ""),
        ('<a href="gone.html">', "gone.html leads nowhere"),
        ('<a href="other.html#gone">', "other.html#gone leads nowhere"),
        ('<a href="#gone">', "#gone leads nowhere"),
        ('<img src="gone.png">', "gone.png leads nowhere"),
        ('<script src="https://elsewhere.example/x.js">', "loads https://elsewhere.example/x.js from elsewhere"),
        ('<link href="//elsewhere.example/x.css">', "loads //elsewhere.example/x.css from elsewhere"),
    ],
)
def test_the_check_of_the_site_sees_what_is_broken(page, problem, tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(SITE))
    (tmp_path / "other.html").write_text('<p id="there">')
    (tmp_path / "page.html").write_text(page)
    found = runpy.run_path(str(SITE / "check.py"))["problems"](tmp_path)
    assert [line for line in found if line.startswith("page.html")] == ([f"page.html: {problem}"] if problem else [])
    assert "reftlens.LoReFT is on no page of the API" in found


def test_the_page_of_a_notebook_shows_all_of_it() -> None:
    converted = runpy.run_path(str(SITE / "notebooks.py"))["converted"]
    for path in sorted(SITE.parent.glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        *figures, (name, page) = converted(path)
        outputs = [output for cell in cells for output in cell.get("outputs", ())]
        assert name == f"{path.stem}.md"
        assert all("".join(cell["source"]) in page for cell in cells)
        assert len(figures) + page.count('<div class="output">') == len(outputs)
        assert all(f"({figure})" in page and content.startswith(b"\x89PNG") for figure, content in figures)


def test_the_citation_names_this_version() -> None:
    assert f"\nversion: {rl.__version__}\n" in (Path(__file__).parent.parent / "CITATION.cff").read_text()
