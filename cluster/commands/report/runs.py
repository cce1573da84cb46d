"""Read the parts of a run directory that a report shows. The run may be in progress or have failed."""

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
"""The number of steps whose responses are shown: the first, the last, and evenly spaced ones between them."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """Some groups of a step, in the format of `transcripts/*.jsonl`."""

    step: int
    groups: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Run:
    """A run as a report shows it."""

    label: str
    config: RunConfig
    rows: Sequence[Mapping[str, Any]]
    """The rows of `metrics.jsonl`."""
    summary: Mapping[str, Any]
    """The summary, empty while the run is not finished."""
    transcripts: Sequence[Transcript]
    code: str = ""

    def curve(self, key: str) -> list[tuple[float, float]]:
        """Return points (step, value) for all finite values of a metric."""
        return [(row["step"], row[key]) for row in self.rows if math.isfinite(row.get(key, math.nan))]

    @property
    def step(self) -> int:
        """The last step that the run has logged."""
        step: int = self.rows[-1]["step"] if self.rows else 0
        return step

    @property
    def seconds(self) -> float:
        """The time in seconds from the first row to the last, including the pauses before resumptions."""
        times = [row["time"] for row in self.rows if math.isfinite(row.get("time", math.nan))]
        return float(times[-1] - times[0]) if times else 0.0


def read_run(path: Path, label: str) -> Run:
    """Read the run in the directory `path`.

    Raises:
        RefusedError: if it does not contain a readable run.
    """
    directory = RunDirectory.existing(path)
    return Run(
        label=label,
        config=directory.read_config(),
        rows=list(read_metrics(directory.metrics_file, increasing=True)),
        summary=directory.read_summary() if directory.is_finished else {},
        transcripts=list(_transcripts(directory)),
        code=directory.read_code_version(),
    )


def labels(paths: Sequence[Path]) -> list[str]:
    """Return a label for each directory: the shortest suffix of its path that distinguishes all directories."""
    absolute = [path.absolute() for path in paths]
    for depth in range(1, max(len(path.parts) for path in absolute) + 1):
        names = ["/".join(path.parts[-depth:]) for path in absolute]
        if len(set(names)) == len(set(absolute)):
            break
    else:
        raise AssertionError("different paths differ in some part")
    return names


def _transcripts(directory: RunDirectory) -> Iterator[Transcript]:
    files = sorted(
        file
        for file in directory.transcripts.glob("step_*.jsonl")
        if file.stem.removeprefix("step_").isdecimal()
    )
    last = len(files) - 1
    chosen = sorted(
        {round(last * at / (SHOWN_TRANSCRIPTS - 1)) for at in range(SHOWN_TRANSCRIPTS)} if files else ()
    )
    for index in chosen:
        yield Transcript(int(files[index].stem.removeprefix("step_")), list(read_transcript(files[index])))
