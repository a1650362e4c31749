"""Imports a module that the user names."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType


def import_named(name: str) -> ModuleType:
    """Imports a module by its name. Like `python -m`, it also finds modules in the working directory.

    Args:
        name: such as "my_module".

    Raises:
        ImportError: If it cannot be imported.
    """
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)
