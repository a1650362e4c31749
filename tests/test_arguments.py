"""Wrong and unusual arguments as users meet them: without the check of annotations that other tests run under."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

MALFORMED = Path(__file__).with_name("malformed_calls.py")
CASES = Path(__file__).with_name("arguments_as_users.py")


def test_arguments_as_users_have_them() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-o", "addopts=", "-p", "no:cacheprovider", str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]


@pytest.mark.parametrize(
    ("every", "least"),
    [pytest.param(40, 300, marks=pytest.mark.slow), pytest.param(7, 1900, marks=pytest.mark.slow)],
)
def test_malformed_calls_never_end_in_an_error_from_inside(tmp_path, every, least) -> None:
    """One wrong argument at a time, of 28 kinds, for everything public: each error is one that reftlens raised."""
    command = [sys.executable, str(MALFORMED), str(every)]
    # A wrong argument may be a fine name for a file.
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    counted = re.search(r"(\d+) malformed calls: (\d+) errors of reftlens, raw: 0", done.stdout)
    assert counted is not None
    assert int(counted[1]) >= least
    assert int(counted[2]) >= 0.7 * least
