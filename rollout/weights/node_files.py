"""One file per weight version and node, shared by every engine on that node.

An engine's model lives in a child process of the rollout worker, and tensors do not travel well through its
control channel.
So the worker writes the published bytes to shared memory once, and each engine process maps the file:

    files = NodeWeightFiles(run_id)
    with files.held(version=3, parts=parts) as path:     # the first worker writes it, the others find it
        ...                                              # the engine loads it
    files.close()

Nobody keeps a register of who uses what; locks do. A file is deleted when a newer one is in use and no worker
holds it; a run's folder is deleted when its last worker closes, or, after a crash, by the next run on the node.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np

from cluster.core.files import lock, try_lock

_PREFIX = "hpo-weights-"
PATIENCE_S = 30.0
"""How long one worker waits for another that is writing the same file; then it writes one itself."""


def _default_root() -> Path:
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


class NodeWeightFiles:
    """This worker's view of the run's weight files on its node."""

    def __init__(self, run_id: str, root: Path | None = None) -> None:
        self._root = root or _default_root()
        self._directory = self._root / f"{_PREFIX}{run_id}"
        self._presence = self._enter()
        self._sweep_abandoned()

    @contextmanager
    def held(self, version: int, parts: Sequence[np.ndarray]) -> Iterator[Path]:
        """The path of `version`'s file, which stays while the block runs. `parts` are its bytes, uint8 [bytes] each.

        Raises:
            OSError: the bytes do not fit into shared memory.
        """
        path = self._directory / f"{version}.safetensors"
        with self._open_shared(path, parts):
            yield path
        for other in self._directory.glob("*.safetensors"):
            if int(other.stem) < version:
                _remove_unless_locked(other)

    def close(self) -> None:
        """Leave; the last worker of the run on this node takes the files along."""
        self._presence.close()
        self._sweep(self._directory)

    def _enter(self) -> IO[str]:
        while True:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                file = open(self._directory / "presence", "a")
            except (FileNotFoundError, FileExistsError):  # a leaving worker removed the folder just now
                continue
            lock(file, shared=True)
            if os.fstat(file.fileno()).st_nlink:
                return file
            file.close()

    def _open_shared(self, path: Path, parts: Sequence[np.ndarray]) -> IO[bytes]:
        while True:
            self._write_once(path, parts)
            try:
                file = open(path, "rb")
            except FileNotFoundError:  # another worker, already further, removed it
                continue
            lock(file, shared=True)
            if _is_at(file, path):
                return file
            file.close()

    def _write_once(self, path: Path, parts: Sequence[np.ndarray]) -> None:
        """Write the file if it is not there; who comes while another writes it waits for that one, but not for ever: it
        may have been stopped in the middle."""
        patience_ends = time.monotonic() + PATIENCE_S
        with open(self._directory / "writing", "a") as writing:
            while not path.exists():
                if try_lock(writing) or time.monotonic() > patience_ends:
                    if not path.exists():
                        _write_whole(path, parts)
                    return
                time.sleep(0.002)

    def _sweep_abandoned(self) -> None:
        for directory in self._root.glob(f"{_PREFIX}*"):
            if directory != self._directory:
                self._sweep(directory)

    @staticmethod
    def _sweep(directory: Path) -> None:
        """Delete a run's folder if no living worker is present in it."""
        try:
            file = open(directory / "presence")
        except (FileNotFoundError, PermissionError):
            return
        with file:
            if not try_lock(file):
                return
            if not os.fstat(file.fileno()).st_nlink:  # another sweeper was quicker
                return
            # Out of the way first: who enters meanwhile makes a folder of its own, and nothing of it is deleted.
            gone = tempfile.mkdtemp(prefix=f"{directory.name}.gone-", dir=directory.parent)
            directory.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def _write_whole(path: Path, parts: Sequence[np.ndarray]) -> None:
    """The file appears under its name only when it is complete. The first of two writers wins, and is not replaced:
    its file may be held already, and what took its place would be held by nobody."""
    with tempfile.NamedTemporaryFile(dir=path.parent) as file:
        for part in parts:
            file.write(part.data)
        file.flush()
        with suppress(FileExistsError):
            os.link(file.name, path)


def _remove_unless_locked(path: Path) -> None:
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        return
    with file:
        if try_lock(file) and _is_at(file, path):
            path.unlink()


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether the open `file` is what `path` names. If it is and is locked, it stays there: who removes a file has its
    exclusive lock, and nobody replaces one."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
