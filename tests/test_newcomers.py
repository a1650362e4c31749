"""Three ways in, each from a clean environment: the wheel alone, in a folder of its own, with the words of the README.

`make test-wheel` runs the same scripts where the dependencies are newly installed as well.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "tests" / "newcomers").glob("*.py"))
QUICKER = {"--n-train", "--set", "--quiet"}
"""Options that only make a script shorter."""
GUIDES = {"from_transformerlens": "from-transformerlens", "from_pyreft": "from-pyreft", "from_a_jsonl_file": "training"}


def run(*command: object, cwd: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean, capture_output=True, text=True, timeout=3000, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """An environment with the wheel. Its dependencies are those of this one, which takes no network."""
    place = tmp_path_factory.mktemp("newcomer")
    run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", place / "dist", ROOT, cwd=place
    )
    (wheel,) = (place / "dist").glob("*.whl")
    run(sys.executable, "-m", "venv", place / "venv", cwd=place)
    python = place / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=place)
    own = run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=place).strip()
    # A path file inside a path file is not read, so an editable install of this package stays out of sight.
    (Path(own) / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    where = run(python, "-c", "import reftlens; print(reftlens.__file__)", cwd=place)
    assert str(place) in where, where
    return python


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_newcomer_does_each_job(script, python, tmp_path) -> None:
    run(python, script, cwd=tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_words_are_those_of_the_readme(script) -> None:
    """Each name and option of a script stands in the README, in the guide of this way in, or in that of serving."""
    pages = [
        ROOT / "README.md",
        *(ROOT / "tutorials" / "guides" / f"{name}.md" for name in (GUIDES[script.stem], "serving", "training")),
    ]
    words = " ".join(page.read_text() for page in pages)
    code = script.read_text()
    used = set(re.findall(r"\brl\.(?:\w+\.)*\w+", code)) | set(re.findall(r'"(--[a-z-]+)"', code))
    assert len(used) > 4
    missing = [name for name in used - QUICKER if name not in words and name.rpartition(".")[2] not in words]
    assert not missing, missing


def test_there_are_three() -> None:
    assert {script.stem for script in SCRIPTS} == set(GUIDES)
