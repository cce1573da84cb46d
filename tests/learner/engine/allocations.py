"""Counts the memory that torch allocates in a block, in bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Allocations:
    """The memory that was allocated and not freed, beyond that at the beginning of the block."""

    peak: int = 0
    end: int = 0


@contextmanager
def allocations(files: Iterable[Path] = ()) -> Iterator[Allocations]:
    """Count the allocations of this thread in the block. The result is filled in at its end.

    Torch also reports the mapping of a file, with the file's size. The mappings of `files` are not counted, because
    their pages are the kernel's.
    """
    from torch.profiler import ProfilerActivity, profile

    sizes = {file.stat().st_size for file in files}
    result = Allocations()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield result
    events: Any = profiler.profiler.kineto_results.events()
    for event in events:
        if event.name() == "[memory]" and abs(event.nbytes()) not in sizes:
            result.end += event.nbytes()
            result.peak = max(result.peak, result.end)
