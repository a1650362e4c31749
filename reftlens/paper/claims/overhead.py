"""Overhead: how much longer does decoding take under an edit of the prompt?

Each round times all runs in turn, in CPU time of this process (so the model must be on a CPU). Time
alone is weak evidence for a small difference, so the changes that edits compute are counted as
well. An edit of the prompt computes one per site, in the first forward pass, for an answer of any
length. The remaining cost is that of hooks that run in every pass without a change. It is constant
per site and token, and therefore a larger fraction of a small model's time. There are two controls:
the base model against itself, which shows the resolution of the clock, and the same edit at
generated tokens too, which must cost more.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from reftlens.bridge import load_bridge
from reftlens.edit.reft import Reft
from reftlens.edit.site import Site
from reftlens.interventions import Intervention, LoReFT
from reftlens.interventions.base import Affine
from reftlens.organisms import ORGANISMS
from reftlens.paper.claims.decoding import greedy_tokens
from reftlens.paper.claims.material import PAPER, config_for, describe
from reftlens.positions import Generated, Positions, parse
from reftlens.results.claims import Overhead, Timed

PROMPT = "The people who built the castle of the city have lived in the country, and every weaver"


@final
@dataclass(frozen=True)
class OverheadConfig:
    """Settings. The number of new tokens is the paper's; layers, rank and positions are those of its commonsense edits."""

    new_tokens: int = 256
    rank: int = 8
    positions: str = "f7+l7"
    rounds: int = 7


SMALL = OverheadConfig(rounds=5)
"""Settings for the organism's shape."""


@final
class Counted(Intervention):
    """Wraps an intervention and counts how often its change is computed. It is only for measurement and is not saved."""

    kind = "counted"

    def __init__(self, inner: Intervention) -> None:
        super().__init__(inner.d_model, inner.rank)
        self.inner = inner
        self.changes = 0

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        # A site's hook runs in every pass; the change is computed only where a token is edited.
        self.changes += 1
        return self.inner.delta(resid)

    def affine(self) -> Affine:
        return self.inner.affine()


def overhead(
    bridge: TransformerBridge,
    config: OverheadConfig = OverheadConfig(),
    *,
    model: str,
    weights: str = "the model's",
    progress: bool = True,
) -> Overhead:
    """Times decoding without an edit, with one, and under two controls.

    Args:
        bridge: the model, on a CPU.
        config: the settings.
        model: name of the model in the result.
        weights: description of its weights.
        progress: show a progress bar.

    Raises:
        ValueError: If the context is too short, or the model is not on a CPU.
    """
    if torch.device(bridge.cfg.device).type != "cpu":
        raise ValueError(f"this claim measures CPU time, but the model is on {bridge.cfg.device}: load it on the CPU")
    rule = parse(config.positions)
    runs: dict[str, Reft | None] = {
        "base model": None,
        "base model again": None,
        "prompt edited": _edited(bridge, rule, config.rank),
        "prompt and new tokens edited": _edited(bridge, rule | Generated(), config.rank),
    }
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    changes, passes = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for name, reft in runs.items():
        # Warm-up, not timed: the first run under an edit also measures the model's hook points in
        # an extra pass.
        greedy_tokens(bridge, reft, [PROMPT], 1)
        changes[name], passes[name] = _count(bridge, reft, config.new_tokens)
    for turn in tqdm(range(config.rounds), desc="decoding in turns", unit="round", disable=not progress):
        # In another order each round, so that no run always follows the same one.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.process_time()
            greedy_tokens(bridge, runs[name], [PROMPT], config.new_tokens)
            seconds[name].append(time.process_time() - start)
    about = describe(
        "An edit of the prompt adds 0.1% to 0.5% to the time of decoding 256 new tokens.",
        source=f"{PAPER}, overhead of generation",
        model=model,
        paper=OverheadConfig(),
        used=config,
        more=(
            ("layers", "not in what was read", f"all {bridge.cfg.n_layers}"),
            ("clock", "not in what was read", f"CPU time, {torch.get_num_threads()} threads, runs in turn"),
            ("weights", "LLaMA's", weights),
        ),
    )
    rows = tuple(Timed(name, tuple(seconds[name]), changes[name], passes[name]) for name in names)
    return Overhead(claim=about, rows=rows)


def _edited(bridge: TransformerBridge, rule: Positions, rank: int) -> Reft:
    """Creates a LoReFT at every layer. Its values do not affect the time."""
    width, layers = bridge.cfg.d_model, range(bridge.cfg.n_layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Reft([(Site(f"blocks.{layer}.hook_resid_post", rule), Counted(LoReFT(width, rank))) for layer in layers])


def _count(bridge: TransformerBridge, reft: Reft | None, n_new: int) -> tuple[int, int]:
    """Counts (changes computed, forward passes) in one decoding."""
    counted = [edit for _, edit in reft if isinstance(edit, Counted)] if reft is not None else []
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    # The warm-up was counted as well.
    before = sum(edit.changes for edit in counted)
    handle = bridge.original_model.register_forward_hook(count)
    try:
        greedy_tokens(bridge, reft, [PROMPT], n_new)
    finally:
        handle.remove()
    return sum(edit.changes for edit in counted) - before, passes


def longer_organism(name: str, *, n_ctx: int) -> TransformerBridge:
    """Creates a model of an organism's shape with random weights and a longer context. Time depends only on the shape."""
    folder = ORGANISMS[name]
    shape = AutoConfig.from_pretrained(folder)
    # GPT-2's name of the context; no trained position is needed, as the weights are random.
    shape.n_positions = n_ctx
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf_model = AutoModelForCausalLM.from_config(shape, attn_implementation="eager")
    return load_bridge(hf_model=hf_model.eval(), tokenizer=AutoTokenizer.from_pretrained(folder))


def run(model: str, *, seed: int = 0, progress: bool = True) -> Overhead:
    """Tests the claim on a named model, on a CPU. An organism's context is short, so a longer model of its shape is used.

    Args:
        model: an organism, a local directory or a hub name.
        seed: has no effect, since time does not depend on any random draw.
        progress: show a progress bar.
    """
    config = config_for(model, paper=OverheadConfig(), organism=SMALL)
    if model in ORGANISMS:
        bridge, weights = (
            longer_organism(model, n_ctx=config.new_tokens + 64),
            "random, the organism's shape, context 320",
        )
    else:
        bridge, weights = load_bridge(model), "the model's"
    return overhead(bridge, config, model=model, weights=weights, progress=progress)
