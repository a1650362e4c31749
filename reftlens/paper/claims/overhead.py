"""Overhead: how much longer does decoding take under an edit of the prompt?

Rounds of all runs in turn, in CPU time of this process (so the model has to be on a CPU). Time alone is weak evidence for a small number,
so the changes that edits compute are counted as well: an edit of the prompt makes one for each site, in the first forward pass, however
long the answer. The time that it still costs is that of hooks which are called in every pass and change nothing: so much Python a
site and a token whatever the size of the model, and so a larger part of a small model's time. Controls: the base model against
itself, which shows what the clock can tell apart, and the same edit at generated tokens too, which must cost more.
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
    """Settings. The paper's number of new tokens; layers, rank and positions are those of its commonsense edits."""

    new_tokens: int = 256
    rank: int = 8
    positions: str = "f7+l7"
    rounds: int = 7


SMALL = OverheadConfig(rounds=5)
"""For the organism's shape."""


@final
class Counted(Intervention):
    """Another intervention, and how often its change was computed. For measuring; it is not saved."""

    kind = "counted"

    def __init__(self, inner: Intervention) -> None:
        super().__init__(inner.d_model, inner.rank)
        self.inner = inner
        self.changes = 0

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
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
        config: settings.
        model: what to call the model.
        weights: what its weights are.
        progress: show a bar.

    Raises:
        ValueError: if the context is too short, or the model is not on a CPU.
    """
    if torch.device(bridge.cfg.device).type != "cpu":
        raise ValueError(f"this measures CPU time, and the model is on {bridge.cfg.device}: load it on a CPU")
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
        # Not timed. The first run under an edit also looks at the model's hook points, in a pass of its own.
        greedy_tokens(bridge, reft, [PROMPT], 1)
        changes[name], passes[name] = _count(bridge, reft, config.new_tokens)
    for turn in tqdm(range(config.rounds), desc="decoding in turns", unit="round", disable=not progress):
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
    """A LoReFT at every layer; what it computes does not matter to the time."""
    width, layers = bridge.cfg.d_model, range(bridge.cfg.n_layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Reft([(Site(f"blocks.{layer}.hook_resid_post", rule), Counted(LoReFT(width, rank))) for layer in layers])


def _count(bridge: TransformerBridge, reft: Reft | None, n_new: int) -> tuple[int, int]:
    """(changes computed, forward passes) of one decoding."""
    counted = [edit for _, edit in reft if isinstance(edit, Counted)] if reft is not None else []
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    before = sum(edit.changes for edit in counted)
    handle = bridge.original_model.register_forward_hook(count)
    try:
        greedy_tokens(bridge, reft, [PROMPT], n_new)
    finally:
        handle.remove()
    return sum(edit.changes for edit in counted) - before, passes


def longer_organism(name: str, *, n_ctx: int) -> TransformerBridge:
    """A model of an organism's shape with random weights and a longer context: time depends on the shape alone."""
    folder = ORGANISMS[name]
    shape = AutoConfig.from_pretrained(folder)
    shape.n_positions = n_ctx
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf_model = AutoModelForCausalLM.from_config(shape, attn_implementation="eager")
    return load_bridge(hf_model=hf_model.eval(), tokenizer=AutoTokenizer.from_pretrained(folder))


def run(model: str, *, seed: int = 0, progress: bool = True) -> Overhead:
    """The claim on a named model, on a CPU; for an organism, whose context is short, on a longer model of its shape.

    Args:
        model: an organism, a local directory or a hub name.
        seed: has no effect: nothing is drawn that time could depend on.
        progress: show a bar.
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
