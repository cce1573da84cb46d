"""Small checkpoints for the tests of the store."""

from __future__ import annotations

from pathlib import Path

from cluster.run_state.checkpoints import CheckpointStore
from cluster.run_state.progress import Progress
from tests.builders import make_progress

RANK_FILE = "learner/state/rank-0.pt"


def progress_at(step: int) -> Progress:
    return make_progress(
        step, position=10 * step, in_flight=("train/0/1", "train/0/7"), trained_prompts=9 * step
    )


def write_learner(path: Path) -> None:
    """Write several files, some in a subdirectory, as DeepSpeed does."""
    (path / "learner" / "state").mkdir(parents=True)
    (path / "learner" / "state" / "rank-0.pt").write_bytes(bytes(1000))
    (path / "learner" / "meta").write_text("meta")


def save(store: CheckpointStore, step: int) -> Path:
    path = store.begin(step)
    write_learner(path)
    store.commit(path, progress_at(step))
    return path


def newest_step(store: CheckpointStore) -> int | None:
    found = store.newest_intact(lambda _: None)
    return found.progress.step if found else None


def only_line(told: list[str]) -> str:
    (line,) = told
    assert "\n" not in line
    return line
