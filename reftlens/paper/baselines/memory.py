"""Measures the peak memory of a computation: the bytes of tensors that are alive at the same time.

The bytes are counted, not sampled: every output tensor of a torch operation counts until it is
freed. So the result is the same on every machine and in any order of runs, unlike a process's
resident memory, which the allocator does not release. Memory inside operations and in other
libraries is not counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, final

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


@final
class PeakMemory(TorchDispatchMode):
    """Context in which `peak` tracks the maximum bytes alive, beyond those alive before.

    with PeakMemory() as memory:
        work()
    memory.peak
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for storage in _storages((args, kwargs)):
            # Created before the context, so it is not counted.
            self._known.setdefault(storage, None)
        out = func(*args, **(kwargs or {}))
        # By storage, since views of one tensor share their bytes.
        for storage in _storages(out):
            if storage not in self._known:
                self._known[storage] = None
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return out

    def _count(self, n_bytes: int) -> None:
        self.alive += n_bytes
        self.peak = max(self.peak, self.alive)


def _storages(values: Any) -> list[UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
