"""Writes files in shared memory at the speed of a copy: in parallel, and into pages that exist already.

New pages of a file cost several times as much as a copy into existing ones, because the system clears and maps each of
them. So a writer keeps its files mapped, and writes into them again.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

_PIECE_BYTES = 16 * 2**20
_THREADS = min(8, len(os.sched_getaffinity(0)))


class _Mapping(NamedTuple):
    descriptor: int
    memory: np.ndarray
    """The whole file, uint8 [bytes]."""


class MappedFiles:
    """The files that this process has written, mapped for the next time."""

    def __init__(self) -> None:
        self._mappings: dict[tuple[int, int], _Mapping] = {}
        """By device and inode."""

    def write(self, path: Path, parts: Sequence[np.ndarray]) -> None:
        """Replace the content of the existing file `path` by `parts`, uint8 [bytes] each, the first one last.

        Until the first part is complete, the file begins with zeros. No other process may use the file.

        Raises:
            OSError: if the bytes do not fit.
        """
        memory = self._memory(path, sum(map(len, parts)))
        memory[: len(parts[0])] = 0
        begin = len(parts[0])
        pieces = list(_pieces(memory[begin:], parts[1:]))
        with ThreadPoolExecutor(_THREADS) as threads:
            for _ in threads.map(lambda piece: np.copyto(*piece), pieces):
                pass
        np.copyto(memory[:begin], parts[0])

    def forget_removed(self) -> None:
        """Release the memory of files that were removed."""
        for key, mapping in list(self._mappings.items()):
            if not os.fstat(mapping.descriptor).st_nlink:
                self._forget(key)

    def close(self) -> None:
        """Release all mappings. The files stay."""
        for key in list(self._mappings):
            self._forget(key)

    def _memory(self, path: Path, size: int) -> np.ndarray:
        self.forget_removed()
        # A descriptor of its own, because a mapping keeps a copy of it, and with it any lock that belongs to it.
        descriptor = os.open(path, os.O_RDWR)
        try:
            status = os.fstat(descriptor)
            key = status.st_dev, status.st_ino
            known = self._mappings.get(key)
            if known is not None and len(known.memory) == status.st_size == size:
                os.close(descriptor)
                return known.memory
            self._forget(key)
            os.ftruncate(descriptor, size)
            # Where memory is short, this is an error. A write to the mapping would kill the process.
            os.posix_fallocate(descriptor, 0, size)
            mapped = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        except BaseException:
            os.close(descriptor)
            raise
        memory = np.frombuffer(mapped, dtype=np.uint8)
        self._mappings[key] = _Mapping(descriptor, memory)
        return memory

    def _forget(self, key: tuple[int, int]) -> None:
        mapping = self._mappings.pop(key, None)
        if mapping is not None:
            os.close(mapping.descriptor)


def _pieces(target: np.ndarray, parts: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the pieces of `target` and `parts` that belong together. They are small enough to occupy all threads."""
    end = 0
    for part in parts:
        for begin in range(0, len(part), _PIECE_BYTES):
            piece = part[begin : begin + _PIECE_BYTES]
            yield target[end : end + len(piece)], piece
            end += len(piece)
