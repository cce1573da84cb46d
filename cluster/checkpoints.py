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
from dataclasses import asdict, dataclass
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
        """Declare the checkpoint in `path` complete, then delete those beyond the newest `keep`."""
        _write_durably(path / "progress.json", json.dumps(asdict(progress), indent=2))
        _write_durably(path / _MARKER, _inventory(path))
        for old in self._complete()[: -self._keep]:
            shutil.rmtree(old)

    def newest(self) -> tuple[Path, Progress] | None:
        """The newest complete checkpoint, or None."""
        for path in reversed(self._complete()):
            raw = json.loads((path / "progress.json").read_text())
            return path, Progress(**raw | {"in_flight": tuple(raw["in_flight"])})
        return None

    def _complete(self) -> list[Path]:
        found = sorted(self._directory.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
        return [path for path in found if _is_complete(path)]


def _inventory(path: Path) -> str:
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and file.name != _MARKER)
    return json.dumps({str(file.relative_to(path)): file.stat().st_size for file in files}, indent=2)


def _is_complete(path: Path) -> bool:
    marker = path / _MARKER
    return marker.exists() and marker.read_text(errors="replace") == _inventory(path)


def _write_durably(path: Path, text: str) -> None:
    """Whole or not at all, and on the disk before anything written later."""
    temporary = path.with_suffix(".partial")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
