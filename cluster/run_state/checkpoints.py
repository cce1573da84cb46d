"""Checkpoints that can be trusted after a crash at any moment.

checkpoints/step-000050/
    learner/        the learner ranks' files: DeepSpeed's, one set per rank, and the state of each rank's random numbers
    progress.json   what the controller needs to go on
    COMPLETE        the manifest, written last: size and SHA-256 of every file above. Without it the directory does not
                    count.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.core.files import write_atomically
from cluster.run_state import manifest
from cluster.run_state.manifest import Manifest, files_in
from cluster.run_state.progress import Progress
from learner.state.state_files import CheckpointError, CheckpointWriteError, FileRecord, seal, why_not_written


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One to go on from."""

    path: Path
    progress: Progress


class CheckpointStore:
    """The checkpoints of one run.

    Usage:
        with store.attempt(step=50) as path:
            sealed = await learner.save(learner_state(path))
            store.commit(path, progress, sealed)
        ...
        checkpoint = store.newest_intact(warn)
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self._directory = directory
        self._keep = keep
        self._damaged: set[Path] = set()

    @property
    def scratch(self) -> Path:
        """Where a checkpoint's state may be cut up anew. What a crash left there is removed with the next commit."""
        return self._directory / "resized"

    @contextmanager
    def attempt(self, step: int) -> Iterator[Path]:
        """An empty directory for this step's checkpoint, to be committed in the block. If that fails, it is removed,
        and those before are left as they are.

        Raises:
            CheckpointError: it could not be written. Says where, how much room there is, and what to do.
        """
        try:
            yield self.begin(step)
        except TimeoutError:  # an OSError, but not of a disk
            raise
        except (OSError, CheckpointWriteError) as error:
            if self._is_complete(self._path(step)):  # all was well but for deleting older ones
                raise
            self._discard(self._path(step))
            raise CheckpointError(self._failure(step, error)) from error

    def begin(self, step: int) -> Path:
        """An empty directory for this step's checkpoint. What a crash left there is removed.

        Raises:
            OSError: it cannot be made.
        """
        path = self._path(step)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def commit(self, path: Path, progress: Progress, sealed: Mapping[Path, FileRecord] | None = None) -> None:
        """Declare the checkpoint in `path` complete, then delete those beyond the newest `keep`, and what crashes left.

        Everything is on the disk before the manifest is, and the manifest before anything older is deleted. Files that
        whoever wrote them has `sealed` are not read again.

        Raises:
            OSError: a part of it cannot be written.
        """
        write_atomically(path / "progress.json", progress.to_json(), durable=True)
        known = {str(file.relative_to(path)): record for file, record in (sealed or {}).items()}
        files = {name: known.get(name) or seal(path / name) for name in files_in(path)}
        for written in (*path.rglob("*"), path, self._directory):
            _sync(written)
        if fault := (complete := Manifest(files)).size_fault(path):
            raise CheckpointWriteError(f"{path} changed while it was written: {fault}")
        write_atomically(path / manifest.FILE_NAME, complete.to_json(), durable=True)
        _sync(path)
        self._damaged.discard(path)
        self._delete_all_but(list(self.complete().values())[-self._keep :])

    def newest_intact(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint whose files are what was written, or None if there is none at all.

        A damaged one is passed over with a line to `warn`, and does not count from then on. A directory without a
        manifest is what a crash or a full disk cut off, and is passed over in silence.

        Raises:
            CheckpointError: there are some, and all are damaged; or another version of this program wrote one.
        """
        faults = []
        for path in reversed(self._steps().values()):
            if not (path / manifest.FILE_NAME).exists():
                continue
            fault, found = _examine(path)
            if found is not None:
                return found
            self._damaged.add(path)
            faults.append(f"{path} is damaged: {fault}")
            warn(f"{faults[-1]}; trying the one before")
        if faults:
            raise CheckpointError(
                f"no checkpoint is left to go on from ({faults[0]}); put a copy back, or start anew with --fresh"
            )
        return None

    def complete(self) -> dict[int, Path]:
        """The complete checkpoints by step, oldest first. Their sizes are looked at, not their contents.

        Raises:
            CheckpointError: another version of this program wrote one.
        """
        return {step: path for step, path in self._steps().items() if self._is_complete(path)}

    def _path(self, step: int) -> Path:
        return self._directory / f"step-{step:06d}"

    def _discard(self, path: Path) -> None:
        """Remove a checkpoint that could not be finished. A rank that still writes into it finds it gone."""
        aside = path.with_name(f"{path.name}.discarded")
        shutil.rmtree(aside, ignore_errors=True)
        if path.exists():
            path.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)

    def _failure(self, step: int, error: Exception) -> str:
        why = why_not_written(error, self._directory) if isinstance(error, OSError) else error
        disk = shutil.disk_usage(self._directory)
        before = self.complete()
        needed = f", and the one before took {_mebibytes(_size(before[max(before)]))}" if before else ""
        then = f"from step {max(before)}" if before else "from the beginning"
        return (
            f"the checkpoint of step {step} could not be written ({why}): in {self._directory} "
            f"{_mebibytes(disk.free)} of {_mebibytes(disk.total)} are free{needed}. Make room there; then the run goes "
            f"on {then}"
        )

    def _steps(self) -> dict[int, Path]:
        found = {
            int(number): path
            for path in self._directory.glob("step-*")
            if (number := path.name.removeprefix("step-")).isdecimal()
        }
        return {step: found[step] for step in sorted(found)}

    def _is_complete(self, path: Path) -> bool:
        if path in self._damaged:
            return False
        try:
            return Manifest.read(path).size_fault(path) is None
        except (OSError, ValueError):
            return False

    def _delete_all_but(self, kept: list[Path]) -> None:
        for path in [*self._directory.glob("step-*"), self.scratch]:
            if path not in kept and path.exists():
                # First what makes it a checkpoint: cut off here, it is an unfinished one, and not a damaged one.
                (path / manifest.FILE_NAME).unlink(missing_ok=True)
                shutil.rmtree(path)


def learner_state(checkpoint: Path) -> Path:
    """Where the learner ranks keep their part of a checkpoint."""
    return checkpoint / "learner"


def _examine(path: Path) -> tuple[str | None, Checkpoint | None]:
    """What is wrong with a checkpoint, or the checkpoint. All of it is read, unless sizes tell already."""
    try:
        written = Manifest.read(path)
        fault = written.size_fault(path) or written.content_fault(path)
        if fault is not None:
            return fault, None
        progress = Progress.from_json((path / "progress.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return str(error), None
    return None, Checkpoint(path, progress)


def _size(checkpoint: Path) -> int:
    return sum(record.size for record in Manifest.read(checkpoint).files.values())


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _sync(path: Path) -> None:
    """Wait until a file's content, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
