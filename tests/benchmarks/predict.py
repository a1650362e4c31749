"""Whether slopes of the base predict where an edit trains well: `analysis.predict_map` scored against `rl.reft_map`.

    python tests/benchmarks/predict.py --out predicted    # all settings, about five minutes on one core
    python tests/benchmarks/predict.py --only "facts-small, landmarks, rank 2"

Each setting trains two edits in each of 30 cells (20 in a model of four blocks): on the answers, and on shuffled ones. Prints the
table of the documentation, and writes each comparison with its figure. Finished cells are kept in the folder.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import reftlens as rl
from reftlens.analysis import beside_training, predict_map
from reftlens.benchmark.models import load
from reftlens.organisms.landmarks import story_for
from reftlens.organisms.world import FACTS, TEMPLATES

SETTINGS = {
    f"{model}, {task}, rank {rank}": (model, task, rank)
    for model, task, rank in (
        ("facts-small", "landmarks", 1),
        ("facts-small", "landmarks", 2),
        ("facts-small", "materials", 2),
        ("random llama", "landmarks", 2),
    )
}


def pairs_of(task: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]], tuple[str, ...]]:
    """Examples, held-out pairs in other phrasings, and the subjects of both."""
    if task == "landmarks":
        story = story_for("facts-small")
        train, held_out = (
            [(question.prompt, question.answer) for question in story.moved_questions(phrasings, new=True)]
            for phrasings in (story.phrasings, story.new_phrasings)
        )
        return train, held_out, tuple(subject for subject, _ in story.moved)
    facts = [fact for fact in FACTS if fact.relation == "made_of"][:6]
    kinds = [fact.answer for fact in FACTS if fact.relation == "made_of"]
    taken = {fact.answer for fact in facts}
    new = [kind for kind in dict.fromkeys(kinds) if kind not in taken][:2] or list(dict.fromkeys(kinds))[:2]
    texts = TEMPLATES["made_of"]

    def pairs(templates: tuple[str, ...]) -> list[tuple[str, str]]:
        return [
            (text.format(fact.subject), f" {new[place % 2]}") for text in templates for place, fact in enumerate(facts)
        ]

    return pairs(texts[:4]), pairs(texts[4:]), tuple(fact.subject for fact in facts)


def compared(model: str, task: str, rank: int, out: Path) -> rl.results.BesideTraining:
    bridge = load(model)
    train, held_out, subjects = pairs_of(task)
    positions = {
        "first token": rl.First(1),
        "second token": rl.At(1),
        "last subject token": rl.LastOf(rl.AnySpan(subjects)),
        "last but one": rl.At(-2),
        "last token": rl.Last(1),
    }
    predicted = predict_map(bridge, train, held_out, positions=positions, rank=rank, progress=False)
    trained = rl.reft_map(
        bridge,
        train,
        held_out,
        positions=positions,
        rank=rank,
        config=rl.TrainConfig(epochs=20, batch_size=20, lr=0.04),
        save_to=out / f"{model} {task} {rank}.safetensors",
    )
    return beside_training(predicted, trained)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("predicted"), help="folder for results and figures")
    parser.add_argument("--only", choices=SETTINGS, action="append", help="these settings alone")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(
        "| setting | predictor | rho | p | p of any | shuffled answers | within columns | within rows | its best cell | random cell | best cell |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in arguments.only or SETTINGS:
        result = compared(*SETTINGS[name], arguments.out)
        result.save(arguments.out / name)
        result.plot().savefig(arguments.out / f"{name}.png")
        for score in result.scores:
            numbers = (score.correlation, score.p, score.p_any, score.shuffled, score.within_columns, score.within_rows)
            gains = (score.at_best, result.at_random, result.at_most)
            cells = [f"{number:.2f}" for number in (*numbers, *gains)]
            print("| " + " | ".join((name, score.predictor, *cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
