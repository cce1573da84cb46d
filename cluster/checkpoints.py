"""Checkpoints that can be trusted after a crash at any moment.

checkpoints/step-000050/
    learner/        DeepSpeed's files, one set per rank
    progress.json   what the controller needs to go on
    COMPLETE        written last: the size of every file above. Without it the directory does not count.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

_MARKER = "COMPLETE"


@dataclass(frozen=True, slots=True)
class Progress:
    """The controller's state between two steps."""

    step: int
    position: int
    """Prompts that the source had handed out."""
    in_flight: tuple[str, ...]
    """Prompts admitted but not trained on: they are admitted again first."""
    trained_prompts: int
    first_pass_at_1: float
    elapsed_s: float
    dropped_prompts: dict[str, int] = field(default_factory=dict)
    """By reason."""


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, directory: Path, keep: int) -> None:
        self._directory = directory
        self._keep = keep

    def begin(self, step: int) -> Path:
        """An empty directory for this step's checkpoint. What a crash left there is removed."""
        path = self._directory / f"step-{step:06d}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def commit(self, path: Path, progress: Progress) -> None:
        """Declare the checkpoint in `path` complete, then delete those beyond the newest `keep`.

        Everything is on the disk before the marker is, and the marker before anything older is deleted. This takes as
        long as the disk needs for all of the checkpoint.
        """
        _write_whole(path / "progress.json", json.dumps(asdict(progress), indent=2))
        for written in (*path.rglob("*"), path, self._directory):
            _sync(written)
        _write_whole(path / _MARKER, _inventory(path))
        _sync(path)
        for old in list(self.complete().values())[: -self._keep]:
            shutil.rmtree(old)

    def newest(self) -> tuple[Path, Progress] | None:
        """The newest complete checkpoint, or None."""
        for path in reversed(self.complete().values()):
            raw = json.loads((path / "progress.json").read_text())
            return path, Progress(**raw | {"in_flight": tuple(raw["in_flight"])})
        return None

    def complete(self) -> dict[int, Path]:
        """The complete checkpoints by step, oldest first."""
        found = {int(path.name.removeprefix("step-")): path for path in self._directory.glob("step-*")}
        return {step: found[step] for step in sorted(found) if _is_complete(found[step])}


def learner_state(checkpoint: Path) -> Path:
    """Where the learner ranks keep their part of a checkpoint."""
    return checkpoint / "learner"


def _inventory(path: Path) -> str:
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and file.name != _MARKER)
    return json.dumps({str(file.relative_to(path)): file.stat().st_size for file in files}, indent=2)


def _is_complete(path: Path) -> bool:
    marker = path / _MARKER
    return marker.exists() and marker.read_text(errors="replace") == _inventory(path)


def _sync(path: Path) -> None:
    """Wait until a file's content, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_whole(path: Path, text: str) -> None:
    """Whole or not at all: the text is on the disk before its name is."""
    temporary = path.with_suffix(".partial")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
