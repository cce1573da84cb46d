"""Checkpoints that survive a crash at any moment.

checkpoints/step-000050/
    learner/        the learner ranks' files: DeepSpeed's, one set per rank, and the random state of each rank
    progress.json   the controller's state
    selection.npz   the state of the informative selection; only with `task.selection: informative`
    rescue.safetensors   the successes of the run and the help of the prompts in flight; only with `rescue.*`
    COMPLETE        the manifest, written last: size and SHA-256 of every file above
    INCOMPLETE      in place of COMPLETE while the checkpoint is written or deleted. Such a directory is skipped, and
                    removed at the next save

The store deletes only what it has made: directories with such a name and one of the two files. Copies under other
names, symbolic links and other files stay, and do not count as checkpoints that are kept. A process that reads a
checkpoint holds it, so that it is not deleted meanwhile.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.core.files import write_atomically
from cluster.core.reading import read_text
from cluster.run_state import manifest
from cluster.run_state.lock_file import LockFile, is_held
from cluster.run_state.manifest import Manifest, files_in
from cluster.run_state.progress import Progress
from cluster.run_state.selection_state import SelectionState
from learner.state.state_files import CheckpointError, CheckpointWriteError, FileRecord, seal, why_not_written

_SCRATCH = ".resizing-"
_RANDOM = r"[0-9a-f]{8}"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint from which a run can resume."""

    path: Path
    progress: Progress
    selection: SelectionState | None = None
    """The state of the informative selection; None if each prompt comes once per epoch."""


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
        self.scratch = directory / f"{_SCRATCH}{secrets.token_hex(4)}"
        """A directory for repartitioning a checkpoint's state. Leftovers of a crash are removed at the next commit."""

    @contextmanager
    def attempt(self, step: int) -> Iterator[Path]:
        """Yield an empty directory for this step's checkpoint, which the block fills and commits. If the block fails,
        the directory is removed, and earlier checkpoints stay as they are.

        Raises:
            CheckpointError: if the checkpoint cannot be written. The message says where, how much space is free, and
                how to continue.
        """
        try:
            yield self.begin(step)
        except TimeoutError:  # an OSError, but not from the disk
            raise
        except (OSError, CheckpointWriteError) as error:
            if self._is_complete(self._path(step)):  # only the deletion of older checkpoints failed
                raise
            if not self._directory.is_dir():
                raise CheckpointError(
                    f"{self._directory} no longer exists: the run directory was deleted or moved while the run was "
                    "writing it"
                ) from error
            self._discard(self._path(step))
            raise CheckpointError(self._failure(step, error)) from error

    def begin(self, step: int) -> Path:
        """Make an empty directory for this step's checkpoint. Leftovers of a crash are removed. If something that the
        store has not made has this name, it is renamed.

        Raises:
            OSError: if it cannot be made.
        """
        path = self._path(step)
        self._directory.mkdir(exist_ok=True)  # but not the run directory: without it, the run has ended
        if self._is_own(path):
            shutil.rmtree(path, ignore_errors=True)
        if os.path.lexists(path):
            path.rename(path.with_name(f"{path.name}.moved-{secrets.token_hex(4)}"))
        path.mkdir()
        (path / manifest.INCOMPLETE_NAME).touch()
        return path

    def commit(
        self,
        path: Path,
        progress: Progress,
        sealed: Mapping[Path, FileRecord] | None = None,
        selection: SelectionState | None = None,
    ) -> None:
        """Mark the checkpoint in `path` as complete; then delete all but the newest `keep`, and leftovers of crashes.

        All files are on the disk before the manifest is, and the manifest is before anything older is deleted. The
        hashes of `sealed` files are known already, so these files are not read again.

        Raises:
            OSError: if a part of it cannot be written.
        """
        write_atomically(path / "progress.json", progress.to_json(), durable=True)
        if selection is not None:
            selection.write(path)
        known = {str(file.relative_to(path)): record for file, record in (sealed or {}).items()}
        files = {name: known.get(name) or seal(path / name) for name in files_in(path)}
        for written in (*path.rglob("*"), path, self._directory):
            _sync(written)
        if fault := (complete := Manifest(files)).size_fault(path):
            raise CheckpointWriteError(f"{path} changed while it was written: {fault}")
        write_atomically(path / manifest.FILE_NAME, complete.to_json(), durable=True)
        _sync(path)
        (path / manifest.INCOMPLETE_NAME).unlink()
        self._damaged.discard(path)
        own = [found for found in self.complete().values() if self._is_own(found)]
        self._delete_all_but(own[-self._keep :])

    def newest_intact(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """Return the newest undamaged checkpoint; None if there is no complete checkpoint at all.

        A damaged checkpoint is skipped with a line to `warn`, and does not count from then on. An incomplete checkpoint
        (without a manifest, after a crash or on a full disk) is skipped silently.

        Raises:
            CheckpointError: if all complete checkpoints are damaged, or if another version of this program wrote one.
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
            warn(f"{faults[-1]}; trying the previous one")
        if faults:
            raise CheckpointError(
                f"no undamaged checkpoint is left ({faults[0]}); restore a copy, or start again with --fresh"
            )
        return None

    def complete(self) -> dict[int, Path]:
        """Return the complete checkpoints by step, oldest first. Sizes of files are checked, their contents are not.

        Raises:
            CheckpointError: if another version of this program wrote one.
        """
        return {step: path for step, path in self._steps().items() if self._is_complete(path)}

    @contextmanager
    def held(self, path: Path) -> Iterator[None]:
        """Hold the checkpoint in `path` while the block reads it: no process deletes it, or moves the run directory.

        Raises:
            CheckpointError: if it was deleted in the meantime.
            OSError: if the directory cannot be written.
        """
        hold = LockFile.take(path.with_name(f".{path.name}.{secrets.token_hex(4)}.reader"))
        try:
            # The store looks for readers after it has renamed the manifest: one of the two sees the other.
            if not (path / manifest.FILE_NAME).exists():
                raise CheckpointError(f"{path} was deleted in the meantime, after newer checkpoints")
            yield
        finally:
            hold.release()

    def readers(self, path: Path | None = None) -> list[Path]:
        """Return the holds of processes that read the checkpoint in `path`, or any checkpoint."""
        name = "*" if path is None else path.name
        return [hold for hold in self._directory.glob(f".{name}.*.reader") if is_held(hold)]

    def _path(self, step: int) -> Path:
        return self._directory / f"step-{step:06d}"

    def _discard(self, path: Path) -> None:
        """Remove an unfinished checkpoint. The rename comes first, so that ranks that still write into it fail."""
        aside = path.with_name(f"{path.name}.discarded-{secrets.token_hex(4)}")
        if path.exists():
            path.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)

    def _failure(self, step: int, error: Exception) -> str:
        why = why_not_written(error, self._directory) if isinstance(error, OSError) else error
        disk = shutil.disk_usage(self._directory)
        before = self.complete()
        needed = f", and the previous one took {_mebibytes(_size(before[max(before)]))}" if before else ""
        then = f"from step {max(before)}" if before else "from the beginning"
        return (
            f"the checkpoint of step {step} could not be written ({why}): in {self._directory} "
            f"{_mebibytes(disk.free)} of {_mebibytes(disk.total)} are free{needed}. Free some space there and start "
            f"the run again: it resumes {then}"
        )

    def _steps(self) -> dict[int, Path]:
        found = {
            int(number): path
            for path in self._directory.glob("step-*")
            if (number := path.name.removeprefix("step-")).isdecimal() and path == self._path(int(number))
        }
        return {step: found[step] for step in sorted(found)}

    def _is_complete(self, path: Path) -> bool:
        if path in self._damaged:
            return False
        try:
            return Manifest.read(path).size_fault(path) is None
        except (OSError, ValueError):
            return False

    def _is_own(self, path: Path) -> bool:
        """Return whether the store has made the directory, and may delete it. It has not made links, and copies of
        another step's checkpoint."""
        name = re.fullmatch(rf"step-([0-9]{{6,}})(\.discarded-{_RANDOM})?", path.name)
        if not name or path.name.partition(".")[0] != self._path(int(name[1])).name:
            return False
        if not _is_directory(path):
            return False
        with suppress(OSError, ValueError):
            if _progress_in(path).step != _step_of(path):
                return False
        names = {entry.name for entry in path.iterdir()}
        return not names or bool(names & {manifest.FILE_NAME, manifest.INCOMPLETE_NAME})

    def _delete_all_but(self, kept: list[Path]) -> None:
        for path in self._directory.glob("step-*"):
            if path not in kept and self._is_own(path):
                self._delete(path)
        for path in self._directory.glob(f"{_SCRATCH}*"):
            if re.fullmatch(re.escape(_SCRATCH) + _RANDOM, path.name) and _is_directory(path):
                shutil.rmtree(path)

    def _delete(self, path: Path) -> None:
        """Delete a directory that the store has made, unless a process reads it. A file that was added to a complete
        checkpoint stays, with its directory."""
        complete, incomplete = path / manifest.FILE_NAME, path / manifest.INCOMPLETE_NAME
        if self.readers(path):
            return
        if complete.exists():
            # The manifest goes first: after a crash here the checkpoint is incomplete, and not damaged.
            complete.rename(incomplete)
            if self.readers(path):
                incomplete.rename(complete)
                return
        try:
            files = Manifest.read(path, manifest.INCOMPLETE_NAME).files
        except (OSError, ValueError, CheckpointError):
            shutil.rmtree(path)  # it was never complete
            return
        for name in list(files_in(path)):
            if name in files:
                (path / name).unlink()
        for directory in sorted(filter(_is_directory, path.rglob("*")), reverse=True):  # from the inside out
            _remove_if_empty(directory)
        incomplete.unlink()
        _remove_if_empty(path)


def learner_state(checkpoint: Path) -> Path:
    """Return the directory of the learner ranks' part of a checkpoint."""
    return checkpoint / "learner"


def _examine(path: Path) -> tuple[str | None, Checkpoint | None]:
    """Return the fault of a checkpoint, or the checkpoint. All files are read, unless a size is wrong already."""
    try:
        written = Manifest.read(path)
        fault = written.size_fault(path) or written.content_fault(path)
        if fault is not None:
            return fault, None
        progress = _progress_in(path)
        selection = SelectionState.read(path, progress)
    except (OSError, ValueError) as error:
        return str(error), None
    if progress.step != _step_of(path):
        return f"it is a copy of the checkpoint of step {progress.step}", None
    return None, Checkpoint(path, progress, selection)


def _progress_in(checkpoint: Path) -> Progress:
    return Progress.from_json(read_text(checkpoint / "progress.json"))


def _is_directory(path: Path) -> bool:
    """Return whether `path` is a directory, and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-").partition(".")[0])


def _remove_if_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _size(checkpoint: Path) -> int:
    return sum(record.size for record in Manifest.read(checkpoint).files.values())


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _sync(path: Path) -> None:
    """Flush a file's content, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
