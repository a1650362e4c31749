"""What R with orthonormal rows costs and how it trains, beside the Householder parametrisation of torch.

    python tests/benchmarks/orthonormal.py

Two tables. Cost: one training step (forward, backward, AdamW) of a 12-layer GPT-2 of width 768 with random weights,
batch 1 x 32 tokens, with one rank-4 LoReFT after each layer; medians over alternating rounds. Trajectory: the loss of
one edit fitted to a planted one, from the same start, after some steps of Adam.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal
from transformers import GPT2Config, GPT2LMHeadModel

from reftlens.interventions import Orthonormal

LAYERS, WIDTH, RANK, TOKENS, ROUNDS = 12, 768, 4, 32, 40


class Free(nn.Module):
    """R without its constraint: what an edit costs apart from it."""

    def __init__(self, rank: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(rank, d_model)))

    def forward(self) -> Tensor:
        return self.weight.view_as(self.weight)


class Householder(nn.Module):
    """R as the reference code has it: [d_model, rank] by torch's Householder map."""

    def __init__(self, rank: int, d_model: int) -> None:
        super().__init__()
        self.layer = orthogonal(nn.Linear(rank, d_model, bias=False), orthogonal_map="householder")

    def forward(self) -> Tensor:
        return self.layer.weight.T


class Edit(nn.Module):
    """h + R^T(Wh + b - Rh), with R from one of the three."""

    def __init__(self, rotation: nn.Module, rank: int, d_model: int) -> None:
        super().__init__()
        self.rotation, self.source = rotation, nn.Linear(d_model, rank)

    def forward(self, h: Tensor) -> Tensor:
        R = self.rotation()
        return h + (self.source(h) - h @ R.T) @ R


def step_of(make_rotation: Callable[[int, int], nn.Module] | None) -> Callable[[], None]:
    """One training step of its own model and edits; None leaves the model bare, with a gradient to its input."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=LAYERS, n_embd=WIDTH, n_head=12)).eval().requires_grad_(False)
    tokens = torch.randint(0, 50257, (1, TOKENS))
    inputs = model.transformer.wte(tokens).requires_grad_(make_rotation is None)
    edits = nn.ModuleList()
    if make_rotation is not None:
        edits.extend(Edit(make_rotation(RANK, WIDTH), RANK, WIDTH) for _ in range(LAYERS))
    for block, edit in zip(model.transformer.h, edits, strict=False):
        block.register_forward_hook(
            lambda _module, _args, out, edit=edit: (edit(out[0]), *out[1:]) if isinstance(out, tuple) else edit(out)
        )
    trained = list(edits.parameters()) or [nn.Parameter(torch.zeros(1))]
    optimiser = torch.optim.AdamW(trained, lr=9e-4, weight_decay=0.0)

    def step() -> None:
        optimiser.zero_grad()
        model(inputs_embeds=inputs, labels=tokens, use_cache=False).loss.backward()
        optimiser.step()

    return step


def cost() -> None:
    steps = {
        "bare model": step_of(None),
        "edits, R free": step_of(Free),
        "edits, R by retraction (reftlens)": step_of(Orthonormal),
        "edits, R by Householder (torch)": step_of(Householder),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(ROUNDS + 3):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_number >= 3:
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(
        f"one step, {LAYERS} layers, d {WIDTH}, rank {RANK}, 1 x {TOKENS} tokens, {torch.get_num_threads()} thread(s)"
    )
    for name, median in medians.items():
        ratios = [a / b for a, b in zip(times[name], times["bare model"], strict=True)]
        print(f"  {name:36} {1e3 * median:7.1f} ms   {statistics.median(ratios):5.2f} x bare")


def trajectory(lr: float, checkpoints: tuple[int, ...], *, d_model: int = 64, rank: int = 4) -> dict[str, list[float]]:
    """Mean squared error of an edit to a planted one after each number of steps, for both forms of R, one start."""
    torch.manual_seed(0)
    h = torch.randn(256, d_model) * torch.linspace(0.5, 2, d_model)
    teacher = Edit(Orthonormal(rank, d_model), rank, d_model)
    target = teacher(h).detach()
    start = Edit(Orthonormal(rank, d_model), rank, d_model)
    losses: dict[str, list[float]] = {}
    for name, make_rotation in (("retraction", Orthonormal), ("Householder", Householder)):
        edit = Edit(make_rotation(rank, d_model), rank, d_model)
        edit.source.load_state_dict(start.source.state_dict())
        with torch.no_grad():
            R = start.rotation().detach()
            if isinstance(edit.rotation, Householder):
                edit.rotation.layer.weight = R.T
            else:
                edit.rotation.weight.copy_(R)
        torch.testing.assert_close(edit.rotation(), R, rtol=0, atol=1e-5)
        optimiser = torch.optim.Adam(edit.parameters(), lr=lr)
        losses[name] = []
        for step in range(max(checkpoints) + 1):
            loss = nn.functional.mse_loss(edit(h), target)
            if step in checkpoints:
                losses[name].append(loss.item())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return losses


def main() -> None:
    cost()
    checkpoints = (0, 100, 300, 1000, 3000)
    for lr in (9e-4, 4e-3, 2e-2):
        print(f"\nmean squared error to a planted edit, d 64, rank 4, Adam, lr {lr}, after steps {checkpoints}")
        for name, values in trajectory(lr, checkpoints).items():
            print(f"  {name:12}" + "".join(f"  {value:9.2e}" for value in values))


if __name__ == "__main__":
    main()
