"""What every variant of the training benchmark computes: one model, one batch, one edit, and how a worker is asked.

Both environments import this file, so it knows neither reftlens nor pyreft. Weights, tokens and the edit's start come
from seeds and do not depend on the version of transformers: all variants begin with the same loss.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

LAYERS, WIDTH, VOCABULARY = 12, 768, 50257
"""GPT-2 small."""
COMPLETION = 12
"""Tokens at the end of each row that the loss counts."""
IGNORE = -100
LR = 9e-4


@dataclass(frozen=True)
class Case:
    """One setting: the batch, and where the edit acts."""

    rows: int
    tokens: int
    """Of each row, prompt and completion together."""
    layers: tuple[int, ...]
    """Edited after these blocks; one LoReFT each, tied over its positions."""
    first: int
    """Edited tokens at the beginning of each prompt."""
    last: int
    """Edited tokens at its end."""
    rank: int = 4
    at: int | None = None
    """A single edited token instead of these."""

    @property
    def prompt(self) -> int:
        """Tokens of each prompt."""
        return self.tokens - COMPLETION

    @property
    def columns(self) -> list[int]:
        """The edited columns."""
        if self.at is not None:
            return [self.at]
        return [*range(self.first), *range(self.prompt - self.last, self.prompt)]

    @property
    def positions(self) -> str:
        """The same in the field's short form."""
        return "+".join(f"{name}{count}" for name, count in (("f", self.first), ("l", self.last)) if count)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Case:
        values = json.loads(text)
        return cls(**{**values, "layers": tuple(values["layers"])})

    def batch(self) -> tuple[Tensor, Tensor]:
        """Tokens and labels `[rows, tokens]`; nothing is padded."""
        tokens = torch.randint(VOCABULARY, (self.rows, self.tokens), generator=torch.Generator().manual_seed(1))
        labels = tokens.clone()
        labels[:, : self.prompt] = IGNORE
        return tokens, labels

    def start(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each edited layer R `[rank, WIDTH]` with orthonormal rows, W `[rank, WIDTH]` and b `[rank]`."""
        generator = torch.Generator().manual_seed(2)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        return [
            (torch.linalg.qr(draw(WIDTH, self.rank))[0].T.contiguous(), draw(self.rank, WIDTH), 10 * draw(self.rank))
            for _ in self.layers
        ]


def completion_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss by hand: cross-entropy at the tokens that are labelled, in nats per token."""
    predicted = labels[:, 1:] != IGNORE
    return nn.functional.cross_entropy(logits[:, :-1][predicted], labels[:, 1:][predicted])


def trained(edit: nn.Module, loss_of: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A training step of an edit: forward, backward, AdamW without weight decay."""
    optimiser = torch.optim.AdamW(edit.parameters(), lr=LR, weight_decay=0.0)

    def step() -> Tensor:
        optimiser.zero_grad()
        loss = loss_of()
        loss.backward()
        optimiser.step()
        return loss

    return step


def base_model() -> GPT2LMHeadModel:
    """A frozen GPT-2 of random weights in eval mode, with eager attention, as TransformerLens has it.

    Its weights are three times as large as GPT-2 starts with, so that an edit of one token moves the loss of others.
    """
    model = GPT2LMHeadModel(GPT2Config(attn_implementation="eager")).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for _, weight in sorted(model.named_parameters()):
        if weight.ndim > 1:
            weight.normal_(0.0, 0.06, generator=generator)
    return model


@dataclass(frozen=True)
class Ready:
    """A variant set up for one case."""

    step: Callable[[], Tensor]
    """One training step; returns its loss."""
    once: float = 0.0
    """CPU seconds of what is done once and not in each step."""


def serve(set_up: Callable[[Case], Ready]) -> None:
    """Answers the parent's lines until there are no more, one line of JSON each.

    `case <json>` sets the variant up and takes its first step: its loss, and the CPU seconds of what is done once.
    `step <n>`: CPU and wall seconds of each of n steps, and the largest resident memory since the case began.
    """
    # What libraries print goes to stderr, so that stdout holds answers alone.
    answers, sys.stdout = sys.stdout, sys.stderr
    ready: Ready | None = None
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        answer: dict[str, object]
        if word == "case":
            ready = None  # what the last case held is given back first
            _forget_peak()
            ready = set_up(Case.from_json(rest))
            answer = {"loss": float(ready.step().detach()), "once": ready.once}
        elif word == "step" and ready is not None:
            times = [_timed(ready.step) for _ in range(int(rest))]
            answer = {"cpu": [cpu for cpu, _ in times], "wall": [wall for _, wall in times], "peak": _peak()}
        else:
            raise ValueError(f"wanted 'case <json>', then 'step <n>', got {line!r}")
        print(json.dumps(answer), file=answers, flush=True)


def _timed(step: Callable[[], Tensor]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    return time.process_time() - cpu, time.perf_counter() - wall


def _forget_peak() -> None:
    """Lets the largest resident memory be counted anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    """Largest resident memory, in MiB: interpreter, libraries, model and step together."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
