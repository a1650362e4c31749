"""Lets only one thread at a time use a bridge, since hooks that one thread attaches would affect runs of all threads.

There are two guards. A context that attaches hooks, or a procedure that runs the model, claims the
bridge for its thread (`one_thread`); a second thread raises an error on entry. Attached hooks raise
an error in any other thread than the one that made them (`in_this_thread`), so that a bare
`bridge(tokens)` in another thread does not run with the edit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge.resid_mid import EditError, HookFunction

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Held only while the lists change, never while a model runs.
_LOCK = threading.Lock()
_TAKEN: WeakKeyDictionary[TransformerBridge, list[threading.Thread]] = WeakKeyDictionary()
"""The thread that has taken each bridge, once for each context that it is in."""

_ONE = (
    "a bridge runs one edit at a time. Use a lock so that one thread finishes before the next begins, or load a second "
    "bridge"
)


@contextmanager
def one_thread(bridge: TransformerBridge) -> Iterator[None]:
    """Claims the bridge for this thread while the context is open. The same thread may nest such contexts.

    Raises:
        EditError: On entry, if another thread is inside such a context.
    """
    here = threading.current_thread()
    with _LOCK:
        inside = _TAKEN.setdefault(bridge, [])
        if inside and inside[0] is not here:
            raise EditError(
                f"thread {here.name!r} cannot use this bridge while thread {inside[0].name!r} uses it: {_ONE}"
            )
        inside.append(here)
    try:
        yield
    finally:
        with _LOCK:
            inside.pop()


def in_this_thread(function: _Function) -> _Function:
    """Wraps a function so that it raises if another thread calls it.

    The check is off during the backward pass, where torch may rerun a checkpointed block in its own
    thread.
    """
    home = threading.current_thread()

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        here = threading.current_thread()
        # torch numbers the running backward passes; -1 is outside of one.
        if here is not home and torch._C._current_graph_task_id() == -1:
            raise EditError(
                f"thread {here.name!r} runs a model to which thread {home.name!r} has attached an edit or another hook: {_ONE}, "
                "or attach the edit in the thread that runs the model"
            )
        return function(*args, **kwargs)

    return guarded  # type: ignore[return-value]


@contextmanager
def hooked(bridge: TransformerBridge, hooks: Sequence[tuple[str, HookFunction]]) -> Iterator[None]:
    """Like `bridge.hooks`, but for one thread: an error is raised if another thread runs the model inside the context.

    Args:
        bridge: the model.
        hooks: pairs of a point's name and the function to run there.

    Raises:
        EditError: On entry, if another thread is using the bridge.
    """
    with one_thread(bridge), bridge.hooks(fwd_hooks=[(name, in_this_thread(hook)) for name, hook in hooks]):
        yield
