"""Shares work among the processes of `torchrun` or `accelerate launch`, with the numbers of one process.

All processes make the same calls, each with the model on its own device. Work that falls into items
(batches of prompts, cells of a map, retrained edits) goes through `each`: an item is computed by
one process, and every process gets the results of all items, in order. Other work is done by every
process, with the same result. So sums are formed in the same order as in one process. Only the main
process writes files and shows progress.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from transformer_lens.model_bridge import TransformerBridge

_Item = TypeVar("_Item")
_Found = TypeVar("_Found")

_LAUNCHED = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
"""Environment variables by which a launcher tells a process its place."""
_INSIDE: ContextVar[int | None] = ContextVar("index of the process that computes an item", default=None)


@final
@dataclass(frozen=True)
class Processes:
    """The processes that share the work, as one of them sees them."""

    index: int
    count: int
    gather: Callable[[Any], list[Any]]
    """One object of each process -> those of all, in their order; every process calls it."""


def processes(bridge: TransformerBridge) -> Processes | None:
    """Returns the processes that share the work; None for a process by itself, and inside an item."""
    launched = "LOCAL_RANK" in os.environ or (torch.distributed.is_available() and torch.distributed.is_initialized())
    if _INSIDE.get() is not None or not launched:
        return None
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state = PartialState(cpu=torch.device(bridge.cfg.device).type == "cpu")
    if state.num_processes == 1:
        return None
    return Processes(state.process_index, state.num_processes, lambda mine: gather_object([mine]))


def own_device(device: str) -> str:
    """Returns the device of this process: "auto" is a GPU if there is one, and each of several processes has its own GPU.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1", ...
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    place = os.environ.get("LOCAL_RANK")
    return f"cuda:{place}" if device == "cuda" and place is not None else device


def is_main_process() -> bool:
    """Returns whether this process writes files and shows progress. True for a process by itself."""
    inside = _INSIDE.get()
    return (int(os.environ.get("RANK", "0")) if inside is None else inside) == 0


def each(bridge: TransformerBridge, compute: Callable[[_Item], _Found], items: Sequence[_Item]) -> Iterator[_Found]:
    """Computes every item, each in one of the processes. All processes must call it, with the same items.

    Args:
        bridge: the model, which says where the processes' tensors are.
        compute: from an item to its result. With several processes, results are pickled: their
            tensors lie on the CPU, without gradients.
        items: what is computed.

    Yields:
        The results, in order, in every process.

    Raises:
        RuntimeError: If the processes have different numbers of items. Errors of `compute` are
            raised in every process.
    """
    there = processes(bridge)
    if there is None:
        yield from map(compute, items)
        return
    # One item of each process at a time, so that results need not all be kept.
    for begun in range(0, len(items), there.count):
        place = begun + there.index
        mine = _attempt(compute, items[place], there.index) if place < len(items) else (None, None)
        gathered = there.gather((len(items), *mine))
        if len({count for count, _, _ in gathered}) > 1:
            raise RuntimeError(
                f"the processes have different work ({', '.join(str(count) for count, _, _ in gathered)} items): call the "
                "analysis with the same arguments in every process"
            )
        for _, _, error in gathered:
            if error is not None:
                raise error
        yield from (found for _, found, _ in gathered[: len(items) - begun])


def _attempt(compute: Callable[[Any], Any], item: Any, index: int) -> tuple[Any, Exception | None]:
    """Returns the result or the error: a process that just stopped would leave the others waiting."""
    token = _INSIDE.set(index)
    try:
        with _by_itself():
            return compute(item), None
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return None, RuntimeError(f"{type(error).__name__}: {error}")
        return None, error
    finally:
        _INSIDE.reset(token)


@contextmanager
def _by_itself() -> Iterator[None]:
    """Hides the other processes from accelerate, so that an edit is trained here as one process trains it."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    states = [kind._shared_state for kind in (PartialState, AcceleratorState, GradientState)]
    before = [dict(state) for state in states]
    told = {name: os.environ.pop(name) for name in _LAUNCHED if name in os.environ}
    card = torch.cuda.current_device() if torch.cuda.is_available() else None
    for state in states:
        state.clear()
    try:
        yield
    finally:
        for state, kept in zip(states, before, strict=True):
            state.clear()
            state.update(kept)
        os.environ |= told
        if card is not None:
            # Settings of a run in one process choose the first GPU.
            torch.cuda.set_device(card)
