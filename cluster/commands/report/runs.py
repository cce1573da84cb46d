"""What a report needs to know of a run, read from its directory. Also of one that still goes on, or that failed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.core.config import RunConfig
from cluster.run_state.run_directory import RunDirectory
from cluster.tracking.jsonl import read_metrics
from cluster.tracking.transcripts import read_transcript

SHOWN_TRANSCRIPTS = 8
"""Steps of which responses are shown: the first, the last, and evenly between them."""


class NotARunError(ValueError):
    """A directory does not hold a run, or not one that can be read."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """Some of a step's groups, each as `transcripts/*.jsonl` has it."""

    step: int
    groups: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Run:
    """`rows` are those of `metrics.jsonl`; `summary` is empty while the run is not finished."""

    label: str
    config: RunConfig
    rows: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]
    transcripts: Sequence[Transcript]
    code: str = ""

    def curve(self, key: str) -> list[tuple[float, float]]:
        """(step, value) wherever there is a finite value."""
        return [(row["step"], row[key]) for row in self.rows if math.isfinite(row.get(key, math.nan))]

    @property
    def step(self) -> int:
        return self.rows[-1]["step"] if self.rows else 0

    @property
    def seconds(self) -> float:
        """From the first row to the last, pauses between resumptions included."""
        return self.rows[-1]["time"] - self.rows[0]["time"] if self.rows else 0.0


def read_run(path: Path, label: str) -> Run:
    """The run in the directory `path`.

    Raises:
        NotARunError: there is none.
    """
    directory = RunDirectory(path.absolute())
    if not directory.config_file.exists():
        raise NotARunError(
            f"{path} is not the directory of a run: there is no {directory.config_file.name} in it"
        )
    try:
        return Run(
            label=label,
            config=directory.read_config(),
            rows=list(read_metrics(directory.metrics_file)),
            summary=directory.read_summary() if directory.is_finished else {},
            transcripts=list(_transcripts(directory)),
            code=directory.read_code_version(),
        )
    except ValueError as error:
        raise NotARunError(f"{path}: {' '.join(str(error).split())}") from error


def labels(paths: Sequence[Path]) -> list[str]:
    """A name for each directory: its own, with as many of those above it as tell it from the others."""
    absolute = [path.absolute() for path in paths]
    for depth in range(1, max(len(path.parts) for path in absolute) + 1):
        names = ["/".join(path.parts[-depth:]) for path in absolute]
        if len(set(names)) == len(set(absolute)):
            break
    else:
        raise AssertionError("different paths differ in some part")
    return names


def _transcripts(directory: RunDirectory) -> Iterator[Transcript]:
    files = sorted(directory.transcripts.glob("step_*.jsonl"))
    last = len(files) - 1
    chosen = sorted(
        {round(last * at / (SHOWN_TRANSCRIPTS - 1)) for at in range(SHOWN_TRANSCRIPTS)} if files else ()
    )
    for index in chosen:
        yield Transcript(int(files[index].stem.removeprefix("step_")), list(read_transcript(files[index])))
