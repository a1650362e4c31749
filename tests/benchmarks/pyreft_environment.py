"""The virtual environment of pyreft: it pins a transformers that TransformerLens cannot use, so it lives apart."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import venv
from pathlib import Path

DEFAULT = Path.home() / ".cache" / "reftlens-benchmarks" / "pyreft"
PINNED = {"transformers": "4.45.1", "pyreft": "0.1.0", "pyvene": "0.1.8"}
NEEDED = ("numpy", "accelerate", "datasets", "matplotlib")
"""What importing pyreft and pyvene needs, of the many packages that they name."""


def environment(directory: Path) -> tuple[Path, str]:
    """The Python of pyreft's environment and the versions in it; made on first use, with this Python's torch version.

    Raises:
        RuntimeError: if the directory holds something else, or half of it.
    """
    wanted = {"torch": importlib.metadata.version("torch").partition("+")[0], **PINNED}
    python = directory / "bin" / "python"
    if not directory.exists():
        print(f"making pyreft's environment in {directory}", file=sys.stderr, flush=True)
        venv.create(directory, with_pip=True)
        _install(python, f"torch=={wanted['torch']}", f"transformers=={wanted['transformers']}", *NEEDED)
        _install(python, "--no-deps", f"pyreft=={wanted['pyreft']}", f"pyvene=={wanted['pyvene']}")
    names = ", ".join(repr(name) for name in wanted)
    script = f"import importlib.metadata as m; print(*(m.version(n).partition('+')[0] for n in ({names})))"
    asked = subprocess.run([str(python), "-c", script], capture_output=True, text=True) if python.exists() else None
    if asked is None or asked.returncode or asked.stdout.split() != list(wanted.values()):
        found = "it is none" if asked is None else asked.stdout.strip() or asked.stderr.strip().splitlines()[-1]
        raise RuntimeError(
            f"{directory} should be an environment with {wanted}, and {found}: remove it, or choose another place with "
            "--pyreft-venv"
        )
    return python, ", ".join(f"{name} {version}" for name, version in wanted.items())


def _install(python: Path, *packages: str) -> None:
    # Progress goes to stderr: stdout is for the tables.
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True, stdout=sys.stderr)
