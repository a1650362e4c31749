"""Does a trained edit beat a difference of means? Steering methods at calibrated strength, on one concept.

Every method gives an edit of strength 1 for a layer: a computed vector is scaled to the mean norm
of the activations there, a trained edit is left as it was trained. Every method has the same
candidates, layers times factors, and the one that scores best on validation prompts is tested on
others (AxBench, arXiv:2501.17148, chooses the factor in this way). All edits act on all tokens,
those of the prompt and the generated ones.

The control is the first method on shuffled texts, and a random vector: both are calibrated like the
others. So what a method gains over them is not the gain of choosing among candidates.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import width_of
from reftlens.edit.generate import generate
from reftlens.edit.reft import Reft
from reftlens.edit.site import Site
from reftlens.interventions import LoReFT, ReFTr1, SteeringVector
from reftlens.numbers import require_whole_number
from reftlens.paper.baselines.edits import EditAt
from reftlens.paper.baselines.judges import Judges
from reftlens.paper.baselines.vectors import (
    READ,
    Formula,
    mean_centred,
    mean_difference,
    principal_difference,
    read_activations,
)
from reftlens.positions import All, Generated
from reftlens.results import Steered, SteeringComparison
from reftlens.results.steering import SteeringRun
from reftlens.training.objectives import Completion
from reftlens.training.train import TrainConfig, train

EVERYWHERE = All() | Generated()
"""Tokens that a steering edit changes."""
_BUDGET = TrainConfig(epochs=20, batch_size=8, lr=4e-3, progress=False)


@final
@dataclass(frozen=True)
class SteeringProblem:
    """A concept: texts that have it, texts that do not, prompts and judges."""

    concept: str
    """Its name."""
    wanted: Sequence[tuple[str, str]]
    """(prompt, completion) pairs whose completion has the concept. Trained methods learn them."""
    other: Sequence[tuple[str, str]]
    """The same prompts in the same order, with completions without it. Only computed vectors use them."""
    ordinary: Sequence[tuple[str, str]]
    """(prompt, completion) pairs of the model's own."""
    validation: Sequence[str]
    """Prompts on which layer and factor are chosen."""
    test: Sequence[str]
    """Prompts for the score."""
    judges: Judges
    max_new_tokens: int = 16

    def __post_init__(self) -> None:
        prompts = [[prompt for prompt, _ in texts] for texts in (self.wanted, self.other)]
        if prompts[0] != prompts[1] or len(prompts[0]) < 2:
            raise ValueError(
                "wanted and other must have the same prompts in the same order, at least two, "
                f"got {len(prompts[0])} and {len(prompts[1])} texts"
            )
        known = {*prompts[0], *self.validation}
        if not self.validation or not self.test or known & set(self.test) or {*prompts[0]} & {*self.validation}:
            raise ValueError("validation and test need prompts, and none of them may be trained on or used twice")
        require_whole_number("max_new_tokens", self.max_new_tokens, least=1)


@dataclass(frozen=True, kw_only=True)
class Steering(ABC):
    """A way to find an edit for a concept. Its settings are fields."""

    hook: str = "hook_resid_post"
    """The activation point inside the block."""

    @abstractmethod
    def found(self, bridge: TransformerBridge, problem: SteeringProblem, layer: int, *, seed: int) -> Reft:
        """Returns the edit at strength 1. It is an ordinary edit: it saves, loads, merges and dissects like any other.

        Args:
            bridge: the frozen base.
            problem: the concept. Its validation and test prompts are not used here.
            layer: the edited block.
            seed: of all random draws.
        """


@final
@dataclass(frozen=True, kw_only=True)
class FoundVector(Steering):
    """A vector that a formula gives, scaled to the mean norm of ordinary activations."""

    formula: Formula = mean_difference
    read: str = "completion"
    """Which tokens are read: a key of `READ`."""
    shuffled: bool = False
    """Control: swaps wanted and other in a random half of the pairs, so that nothing is left to find."""

    def __post_init__(self) -> None:
        if self.read not in READ:
            raise ValueError(f"Unknown read {self.read!r}. Choose from: {', '.join(READ)}")

    def found(self, bridge: TransformerBridge, problem: SteeringProblem, layer: int, *, seed: int) -> Reft:
        pairs = list(zip(problem.wanted, problem.other, strict=True))
        if self.shuffled:
            generator = random.Random(seed)
            swapped = set(generator.sample(range(len(pairs)), len(pairs) // 2))
            pairs = [pair[::-1] if row in swapped else pair for row, pair in enumerate(pairs)]
        hook_name = f"blocks.{layer}.{self.hook}"
        wanted, other, ordinary = (
            read_activations(bridge, texts, hook_name, read=self.read)
            for texts in (*map(list, zip(*pairs, strict=True)), problem.ordinary)
        )
        return _pushed(self.formula(wanted, other, ordinary), float(ordinary.norm(dim=-1).mean()), hook_name)


@final
@dataclass(frozen=True, kw_only=True)
class RandomVector(Steering):
    """Control: a random direction, scaled to the mean norm of ordinary activations."""

    def found(self, bridge: TransformerBridge, problem: SteeringProblem, layer: int, *, seed: int) -> Reft:
        hook_name = f"blocks.{layer}.{self.hook}"
        ordinary = read_activations(bridge, problem.ordinary, hook_name)
        drawn = torch.randn(width_of(bridge, hook_name), generator=torch.Generator().manual_seed(seed))
        return _pushed(drawn.to(ordinary), float(ordinary.norm(dim=-1).mean()), hook_name)


@final
@dataclass(frozen=True, kw_only=True)
class TrainedEdit(Steering):
    """An edit that is trained on the wanted texts, such as LoReFT or a steering vector."""

    edit: EditAt
    """Its class, rank and learning rate. Layers and positions are those of the comparison."""
    config: TrainConfig = _BUDGET

    def found(self, bridge: TransformerBridge, problem: SteeringProblem, layer: int, *, seed: int) -> Reft:
        placed = replace(self.edit, layers=[layer], positions=EVERYWHERE, hook=self.hook)
        # First weights come from torch's global generator, which the caller gets back as it was.
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            with placed.applied(bridge, Completion(), problem.wanted[0]) as reft:
                settings = replace(self.config, seed=seed, lr=self.edit.lr or self.config.lr)
                train(bridge, reft, list(problem.wanted), settings)
        return reft


def _pushed(direction: torch.Tensor, size: float, hook_name: str) -> Reft:
    norm = float(direction.norm())
    if not norm > 0:
        raise ValueError(f"the vector found at {hook_name} is zero: the wanted and the other texts are the same there")
    return Reft([(Site(hook_name, EVERYWHERE), SteeringVector.of(direction * (size / norm)))])


STEERING: dict[str, Steering] = {
    "difference of means": FoundVector(),
    "contrastive pairs (CAA)": FoundVector(read="answer"),
    "mean-centred": FoundVector(formula=mean_centred),
    "PCA of differences": FoundVector(formula=principal_difference),
    "trained vector": TrainedEdit(edit=EditAt(intervention=SteeringVector, lr=3e-2)),
    "ReFT-r1": TrainedEdit(edit=EditAt(intervention=ReFTr1, lr=3e-2)),
    "LoReFT of rank 1": TrainedEdit(edit=EditAt(intervention=LoReFT, rank=1)),
    "LoReFT of rank 4": TrainedEdit(edit=EditAt(intervention=LoReFT, rank=4)),
    "shuffled texts": FoundVector(shuffled=True),
    "random vector": RandomVector(),
}
"""Default methods by name. The first is the reference, the last two are controls. Learning rates
are untuned starting points, as in `METHODS`; strength and layer are chosen for each.
"""
FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Default strengths."""


def steered(bridge: TransformerBridge, reft: Reft | None, problem: SteeringProblem, prompts: Sequence[str]) -> Steered:
    """Generates after prompts and judges the texts.

    Args:
        bridge: the model.
        reft: the edit, or None for the base.
        problem: the concept, with its judges.
        prompts: the prompts.
    """
    texts = generate(bridge, reft, prompts, max_new_tokens=problem.max_new_tokens, batch_size=64)
    return problem.judges(prompts, texts)


def calibrated(
    bridge: TransformerBridge,
    problem: SteeringProblem,
    method: Steering,
    *,
    layers: Sequence[int],
    factors: Sequence[float] = FACTORS,
    seed: int = 0,
) -> tuple[Reft, int, float, float]:
    """Finds the edit at each layer and chooses layer and factor on the validation prompts.

    Args:
        bridge: the frozen base.
        problem: the concept.
        method: one of `STEERING`, or your own.
        layers: blocks to try.
        factors: strengths to try at each. Of equal scores the first layer and the smallest factor
            win.
        seed: of the method's random draws.

    Returns:
        (the edit at that strength, its layer, its factor, its score on the validation prompts).

    Raises:
        ValueError: If there are no layers or factors, or a factor is not above 0.
    """
    if not layers or not factors or min(factors) <= 0:
        raise ValueError(f"calibration needs layers and factors above 0, got {list(layers)} and {list(factors)}")
    best: tuple[Reft, int, float, float] | None = None
    for layer in layers:
        # Found once for all factors: these scale the change, and nothing is trained again.
        reft = method.found(bridge, problem, layer, seed=seed)
        for factor in sorted(factors):
            candidate = reft.scaled(factor)
            score = steered(bridge, candidate, problem, problem.validation).mean()
            if best is None or score > best[3]:
                best = (candidate, layer, factor, score)
    assert best is not None, "there is at least one layer and factor"
    return best


def compare_steering(
    bridge: TransformerBridge,
    problems: Mapping[int, Sequence[SteeringProblem]],
    methods: Mapping[str, Steering] = STEERING,
    *,
    layers: Sequence[int],
    factors: Sequence[float] = FACTORS,
    progress: bool = True,
) -> SteeringComparison:
    """Calibrates and tests each method on each problem.

    Args:
        bridge: the frozen base.
        problems: seed -> the problems of that seed, one per concept. All have the same test
            prompts, which pairs the scores.
        methods: methods by name; the first is the reference.
        layers: blocks to try, for each method.
        factors: strengths to try, for each method.
        progress: show a progress bar.

    Raises:
        ValueError: If there are no problems or methods, the seeds have different concepts, or the
            problems different test prompts.
    """
    if not methods or not problems or not all(problems.values()):
        raise ValueError("compare_steering needs at least one method, one seed and one problem")
    shapes = {
        tuple((one.concept, tuple(one.test)) for one in sorted(some, key=lambda one: one.concept))
        for some in problems.values()
    }
    if len(shapes) > 1 or len({test for _, test in next(iter(shapes))}) > 1:
        raise ValueError("every seed needs the same concepts, and all problems the same test prompts in the same order")
    wanted = [(seed, problem) for seed, some in problems.items() for problem in some]
    runs = []
    for seed, problem in tqdm(wanted, desc="steering", unit="concept", disable=not progress):
        # For each seed anew, because the judges of another seed know other natural texts.
        base = steered(bridge, None, problem, problem.test)
        on_validation = steered(bridge, None, problem, problem.validation).mean()
        runs.append(SteeringRun("base, not steered", problem.concept, seed, None, None, on_validation, base))
        for name, method in methods.items():
            reft, layer, factor, score = calibrated(bridge, problem, method, layers=layers, factors=factors, seed=seed)
            found = steered(bridge, reft, problem, problem.test)
            runs.append(SteeringRun(name, problem.concept, seed, layer, factor, score, found))
    return SteeringComparison(next(iter(methods)), len(layers) * len(factors), tuple(runs))
