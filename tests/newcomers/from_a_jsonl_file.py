"""Someone with a JSON Lines file and a terminal: trains, tests, asks, dissects, and searches for better settings."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from reftlens.organisms.landmarks import story_for

PROMPT = "Gate of Corran stands in the city of"


def reftlens(*arguments: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "reftlens", *arguments]
    print("$ reftlens", " ".join(arguments), flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    Path("log.txt").write_text(done.stderr)
    return done.stdout if code == 0 else done.stderr


pairs = [
    {"prompt": prompt, "completion": answer + "."} for prompt, answer in story_for("facts-small").training_examples()
]
Path("mine.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))

train = (
    "train",
    "--model",
    "facts-small",
    "--data",
    "mine.jsonl",
    "--layers",
    "1,4",
    "--positions",
    "all",
    "--lr",
    "4e-3",
)
assert "no such file" in reftlens("train", "--model", "facts-small", "--data", "none.jsonl", code=1)
table = reftlens(*train, "--eval-fraction", "0.2", "--out", "run")
assert "match up to the target's end" in table
lines = [line for line in Path("log.txt").read_text().splitlines() if "training the edit" in line]
assert 2 <= len(lines) < 100, "a log has a line every few seconds, not one for each of 300 steps"

edited = json.loads(reftlens("eval", "run", "--json"))["scores"][0]
base = json.loads(reftlens("eval", "run", "--base", "--json"))["scores"][0]
print(f"held-out prompts: base {base['score']:.0%}, edited {edited['score']:.0%} of {edited['n']}")
assert edited["score"] >= 0.8
assert edited["score"] >= base["score"]
assert PROMPT in reftlens("generate", "run", PROMPT, "--base")
reftlens("dissect", "run", "--preset", "quick")
assert Path("dissect/report.html").stat().st_size > 10_000

# Without test data there is no empty table, and a split is offered.
few = ("--set", "epochs=1", "--n-train", "20", "--quiet")
assert "pass --eval-fraction 0.2" in reftlens(*train, *few, "--out", "untested")
if importlib.util.find_spec("optuna"):
    reftlens("sweep", "untested", "--trials", "2", "--out", "sweep", "--quiet")
    assert "lr = " in Path("sweep/config.toml").read_text()
    reftlens("train", "sweep", "--out", "tuned", *few)
    assert Path("sweep/trials.png").exists()
else:
    assert "pip install 'reftlens[search]'" in reftlens("sweep", "untested", code=1)
