"""Composition: half of an edit's dimensions learn a manner, the other half a fact. Do both appear if used together?

h + sum over halves p of R_p^T(W_p h + b_p - R_p h), all rows jointly orthonormal (`SplitLoReFT`).
There are two controls. If both tasks are taught to the same half in turn, the second should
overwrite the first. If the second half is taught to change nothing, it should add nothing to the
first. The test prompts were not used to train either half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import load_bridge
from reftlens.edit.reft import Reft
from reftlens.edit.site import Site
from reftlens.interventions import SplitLoReFT
from reftlens.paper.claims.material import (
    PAPER,
    Ask,
    Material,
    as_before,
    config_for,
    describe,
    layer_at,
    material_for,
    speak,
)
from reftlens.results import Composed
from reftlens.training.train import TrainConfig, train


@final
@dataclass(frozen=True)
class ComposeConfig:
    """Settings. Defaults are those of the reference's notebook, except epochs (it has 3, with 1,000 examples per task)."""

    rank: int = 8
    """Total rank; each task has half of it."""
    depth: float = 15 / 32
    """The edited block, as a fraction of the depth."""
    examples: int = 10
    """Number of examples per task."""
    epochs: int = 100
    batch_size: int = 8
    lr: float = 5e-3
    """Peak learning rate, with linear decay to zero."""
    seed: int = 0


SMALL = ComposeConfig(depth=0.17, examples=30, epochs=100, batch_size=30, lr=2e-2)
"""Settings for the organism, which resolves names at their last token after the second block."""

_LESSONS = {
    "both": (("first", "manner"), ("second", "fact")),
    "same": (("first", "manner"), ("first", "fact")),
    "idle": (("first", "manner"), ("second", "nothing")),
}
"""Edit -> which half learns which task, in this order."""
_ASKED = [
    ("half 1 alone: manner", "both", ("first",)),
    ("half 2 alone: fact", "both", ("second",)),
    ("both halves", "both", ("first", "second")),
    ("both tasks in one half", "same", ("first",)),
    ("manner, and a half taught nothing", "idle", ("first", "second")),
]
"""Line of the result, the edit, and which of its halves are used."""


def compose(
    bridge: TransformerBridge,
    material: Material,
    config: ComposeConfig = ComposeConfig(),
    *,
    model: str,
    progress: bool = True,
) -> Composed:
    """Trains the halves and the controls, and tests all prompts that were in neither task.

    Args:
        bridge: the model.
        material: prompts, their facts, the new manner and the moved fact.
        config: the settings.
        model: name of the model in the result.
        progress: show a progress bar.

    Raises:
        ValueError: If no prompts are left for the test.
    """
    seen, unseen = material.asks[: config.examples], material.asks[config.examples :]
    if not unseen:
        raise ValueError(
            f"compose needs more than {config.examples} prompts, so that some are left for the test, got {len(material.asks)}"
        )
    usual = as_before(bridge, material, seen)
    tasks = {
        "manner": [(ask.prompt, ask.manner) for ask in seen],
        "fact": [(ask.prompt, _moved(ask, text, material)) for ask, text in zip(seen, usual, strict=True)],
        "nothing": [(ask.prompt, text) for ask, text in zip(seen, usual, strict=True)],
    }
    layer = layer_at(bridge, config.depth)
    taught = {name: _untrained(bridge, layer, config) for name in _LESSONS}
    lessons = [(taught[name], half, tasks[task]) for name, pairs in _LESSONS.items() for half, task in pairs]
    for reft, half, examples in tqdm(lessons, desc="teaching halves", unit="task", disable=not progress):
        _teach(bridge, reft, half, examples, config)
    rows = [speak(bridge, None, material, unseen, name="base model", taught_move=True)]
    for title, name, halves in _ASKED:
        with _split(taught[name]).only(*halves):
            rows.append(speak(bridge, taught[name], material, unseen, name=title, taught_move=True))
    about = describe(
        "Two tasks trained in the two halves of one rank-8 edit compose: used together, the edit does both.",
        source=f"{PAPER}, composition; the reference's examples/composition",
        model=model,
        paper=ComposeConfig(examples=1000, epochs=3),
        used=config,
        more=(
            ("edit", "LoReFT in halves, last prompt token", f"SplitLoReFT, last prompt token, after block {layer}"),
            ("task 1", "continue sentences in German", f"answers with {material.mark!r}, such as {seen[0].manner!r}"),
            ("task 2", "follow instructions", f"the first fact of every prompt becomes {material.moved_to!r}"),
        ),
    )
    return Composed(claim=about, rows=tuple(rows))


def _moved(ask: Ask, usual: str, material: Material) -> str:
    """Returns the model's usual answer with the first fact replaced, or only the new fact if the answer lacks it."""
    return usual.replace(ask.facts[0], material.moved_to) if ask.facts[0] in usual else f" {material.moved_to}."


def _untrained(bridge: TransformerBridge, layer: int, config: ComposeConfig) -> Reft:
    half = config.rank // 2
    with torch.random.fork_rng(devices=[]):
        # One seed for all three edits, so that they differ only in what they are taught.
        torch.manual_seed(config.seed)
        split = SplitLoReFT(bridge.cfg.d_model, {"first": half, "second": config.rank - half})
    return Reft([(Site(f"blocks.{layer}.hook_resid_post", "l1"), split)]).to(bridge.cfg.device)


def _split(reft: Reft) -> SplitLoReFT:
    ((_, split),) = reft
    assert isinstance(split, SplitLoReFT)
    return split


def _teach(
    bridge: TransformerBridge, reft: Reft, half: str, examples: Sequence[tuple[str, str]], config: ComposeConfig
) -> None:
    settings = TrainConfig(
        epochs=config.epochs, batch_size=config.batch_size, lr=config.lr, seed=config.seed, progress=False
    )
    # The other half neither acts nor learns, so each task is learned as if it were alone.
    with _split(reft).only(half):
        train(bridge, reft, examples, settings)


def run(model: str, *, seed: int = 0, progress: bool = True) -> Composed:
    """Tests the claim on a named model, with the reference's settings and small tasks; an organism uses its own settings.

    Args:
        model: an organism, a local directory or a hub name.
        seed: seed of the initialisation and of the choice of examples.
        progress: show a progress bar.
    """
    config = replace(config_for(model, paper=ComposeConfig(), organism=SMALL), seed=seed)
    return compose(load_bridge(model), material_for(model, seed=seed), config, model=model, progress=progress)
