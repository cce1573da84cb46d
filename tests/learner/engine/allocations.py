"""Counts the memory of the tensors that are made in a block, in bytes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.multiprocessing import reductions
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_weak_reference: Any = reductions.StorageWeakRef

PATIENCE_S = 0.5
"""The time in which other threads free what they have used."""


@dataclass
class Allocations:
    """The memory that was allocated and not freed, beyond that at the beginning of the block."""

    peak: int = 0
    end: int = 0


@contextmanager
def allocations(files: Iterable[Path] = ()) -> Iterator[Allocations]:
    """Count the memory that operators allocate in this thread in the block. The result is filled in at its end.

    It does not matter which thread frees it: a thread of gloo lets go of a tensor shortly after its collective. The
    mappings of `files` are not counted, because their pages are the kernel's.
    """
    result = Allocations()
    counter = _Counter({file.stat().st_size for file in files})
    with counter:
        yield result
    time.sleep(PATIENCE_S)
    result.peak, result.end = counter.peak, counter.living()


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Knows the memory that each operator's results have and its arguments have not."""

    def __init__(self, not_counted: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._not_counted = not_counted
        self._sizes: dict[Any, int] = {}

    def living(self) -> int:
        """Return the memory that still exists."""
        self._sizes = {memory: size for memory, size in self._sizes.items() if not memory.expired()}
        return sum(self._sizes.values())

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        results = function(*arguments, **(options or {}))
        given = {_memory(each) for each in tree_leaves((arguments, options)) if isinstance(each, Tensor)}
        made = False
        for each in tree_leaves(results):
            if isinstance(each, Tensor) and not each.is_meta and _memory(each) not in given:
                storage = each.untyped_storage()
                if storage.nbytes() not in self._not_counted:
                    self._sizes[_weak_reference(storage)] = storage.nbytes()
                    made = True
        if made:
            self.peak = max(self.peak, self.living())
        return results


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
