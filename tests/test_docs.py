"""Every public name says what it is, what it takes and what it raises; and the API pages are made without a warning."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import reftlens as rl

PACKAGES = {"rl": rl, "rl.analysis": rl.analysis, "rl.plot": rl.plot, "rl.objectives": rl.objectives}
PAGES = Path(__file__).parent / "api_pages.py"
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


@pytest.mark.slow
def test_the_api_pages_hold_every_public_name(tmp_path) -> None:
    """In a process of its own: it puts every name into the package, which others must not find there."""
    done = subprocess.run([sys.executable, str(PAGES), str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
    for package, module in PACKAGES.items():
        page = tmp_path / f"{package.replace('rl', 'reftlens').replace('.', '/')}.html"
        found = set(re.findall(r'id="([^"]+)"', page.read_text()))
        assert not set(module.__all__) - found - NOT_CODE, page
