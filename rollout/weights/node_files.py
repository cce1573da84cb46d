"""One file per weight version and node, shared by all engines of that node.

An engine's model lives in child processes of the rollout worker, and their control channel is too slow for tensors. So
one worker writes the published bytes to a file in shared memory, and each engine process maps that file:

    files = NodeWeightFiles(run_id)
    with files.held(version=3, parts=parts) as path:     # the first worker writes the file, the others use it
        ...                                              # the engine loads the file
    files.close()

File locks record the use of files; there is no other register. A worker that holds a file and an engine that has mapped
it (`rollout/weights/pull.py`) have a shared lock. A file of an older version that has no lock is taken away under the
exclusive lock and written again, because new pages cost several times as much as a copy. If all are in use, the writer
makes a new file, and the old ones are deleted when a newer one is in use and they have no lock.

The directory of a run is deleted when its last worker closes or, after a crash, by the next run on the node. What other
users have left behind is theirs: it is neither waited for nor deleted.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np

from cluster.core.files import is_at, lock, try_lock
from cluster.core.reading import open_own
from rollout.weights.shared_memory import MappedFiles

_PREFIX = "hpo-weights-"
_GONE = ".gone-"
"""A part of the name of a directory that is being deleted."""
_PARTIAL = ".partial"
"""The suffix of a file that is being written. It is locked, unless its writer was killed."""
PATIENCE_S = 30.0
"""The longest wait for another worker that writes the same file. After that, this worker writes the file itself."""


def _default_root() -> Path:
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


class NodeWeightFiles:
    """The weight files of a run on this node, as one worker uses them."""

    def __init__(self, run_id: str, root: Path | None = None) -> None:
        self._root = root or _default_root()
        self._directory = self._root / f"{_PREFIX}{run_id}"
        self._written = MappedFiles()
        self._presence = self._enter()
        sweep_abandoned(self._root, but=self._directory)

    @contextmanager
    def held(self, version: int, parts: Sequence[np.ndarray]) -> Iterator[Path]:
        """Yield the path of the file of `version`, which exists while the block runs. `parts` are its bytes, uint8
        [bytes] each.

        Raises:
            OSError: if the bytes do not fit into shared memory.
        """
        path = self._directory / f"{version}.safetensors"
        with self._open_shared(path, parts):
            yield path
        for other in self._older(path):
            _remove_unless_locked(other)
        for abandoned in self._directory.glob(f"*{_PARTIAL}"):
            _remove_unless_locked(abandoned)
        self._written.forget_removed()

    def close(self) -> None:
        """Stop using the files. The last worker of the run on this node deletes them."""
        self._written.close()
        self._presence.close()
        _sweep(self._directory)

    def _enter(self) -> IO[str]:
        while True:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                file = open(self._directory / "presence", "a")
            except (FileNotFoundError, FileExistsError):  # a closing worker has just removed the directory
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
            except FileNotFoundError:  # a worker with a newer version has removed it
                continue
            # A worker that has the exclusive lock takes the file away, or has just written it.
            if try_lock(file, shared=True) and is_at(file, path):
                return file
            file.close()
            time.sleep(0.001)

    def _write_once(self, path: Path, parts: Sequence[np.ndarray]) -> None:
        """Write the file if it does not exist. If another worker writes it, wait for that worker, but at most
        `PATIENCE_S`, because it may have been stopped."""
        patience_ends = time.monotonic() + PATIENCE_S
        with open(self._directory / "writing", "a") as writing:
            while not path.exists():
                if try_lock(writing) or time.monotonic() > patience_ends:
                    if not path.exists():
                        self._write_whole(path, parts)
                    return
                time.sleep(0.002)

    def _write_whole(self, path: Path, parts: Sequence[np.ndarray]) -> None:
        """Write a complete file and link it to `path`.

        If two workers write the file, the first link stays: workers may already hold that file, and would not hold a
        file that replaces it.
        """
        file, partial = self._taken_away(path) or self._new_file(path)
        with file:
            try:
                self._written.write(partial, parts)
                lock(file, shared=True)  # from here on others may use it
                with suppress(FileExistsError):
                    os.link(partial, path)
            finally:
                partial.unlink(missing_ok=True)

    def _taken_away(self, path: Path) -> tuple[IO[bytes], Path] | None:
        """Take an unused file of an older version out of use, if there is one. Return it, locked, with its new path."""
        for older in self._older(path):
            with suppress(FileNotFoundError):
                file = open(older, "r+b")
                if try_lock(file) and is_at(file, older):
                    partial = self._partial_path(path)
                    older.rename(partial)
                    return file, partial
                file.close()
        return None

    def _new_file(self, path: Path) -> tuple[IO[bytes], Path]:
        """Make an empty file. Return it, locked, with its path."""
        while True:
            partial = self._partial_path(path)
            file = open(partial, "x+b")
            lock(file)
            if is_at(file, partial):
                return file, partial
            file.close()  # another worker took it for the file of a killed worker

    def _partial_path(self, path: Path) -> Path:
        return path.with_name(f"{path.stem}-{secrets.token_hex(4)}{_PARTIAL}")

    def _older(self, path: Path) -> list[Path]:
        """Return the files of versions before that of `path`."""
        return [file for file in self._directory.glob("*.safetensors") if int(file.stem) < int(path.stem)]


def sweep_abandoned(root: Path | None = None, but: Path | None = None) -> None:
    """Delete the directories of runs that no live worker uses, except `but`."""
    for directory in (root or _default_root()).glob(f"{_PREFIX}*"):
        if directory != but:
            _sweep(directory)


def _sweep(directory: Path) -> None:
    """Delete the directory of a run if no live worker uses it."""
    if _GONE in directory.name:  # its deletion was interrupted
        _delete_own(directory)
        return
    file = open_own(directory / "presence")
    if file is None:
        with suppress(OSError):
            if directory.lstat().st_uid == os.geteuid():
                directory.rmdir()  # an empty one, whose worker was killed at once or starts again
        return
    with file, suppress(OSError):
        if not try_lock(file):
            return
        if not os.fstat(file.fileno()).st_nlink:  # another worker has deleted it
            return
        # Rename the directory first. A worker that starts meanwhile creates a new one, which is not deleted.
        gone = tempfile.mkdtemp(prefix=f"{directory.name}{_GONE}", dir=directory.parent)
        directory.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _delete_own(directory: Path) -> None:
    """Delete a directory, unless it is another user's or a link."""
    with suppress(OSError):
        status = directory.lstat()
        if status.st_uid == os.geteuid() and stat.S_ISDIR(status.st_mode):
            shutil.rmtree(directory, ignore_errors=True)


def _remove_unless_locked(path: Path) -> None:
    file = open_own(path)
    if file is None:
        return
    with file:
        if try_lock(file) and is_at(file, path):
            path.unlink()
