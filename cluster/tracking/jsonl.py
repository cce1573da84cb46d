"""`metrics.jsonl`: append-only, one JSON object per step, the truth about a run.

A step is there at most once and steps rise. What a resumed run does again is moved aside first.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.core.files import write_atomically


class MetricsFile:
    """Appends steps to the file; each line is on its way to the disk when `log` returns.

        with MetricsFile(run.metrics_file, run.superseded_metrics_file) as metrics:
            metrics.truncate_after(checkpoint_step)  # on resume only
            metrics.log(51, {"reward/mean": 0.25})

    Raises:
        OSError: the file cannot be opened or written (a full disk, say).
        ValueError: the file has a broken line that is not the last one.
    """

    def __init__(self, path: Path, superseded: Path) -> None:
        self._path = path
        self._superseded = superseded
        _cut_half_written_line(path)
        self._last_step = max((row["step"] for row in read_metrics(path)), default=-1)
        self._stream = path.open("a", encoding="utf-8")

    def log(
        self,
        step: int,
        metrics: Mapping[str, float],
        prompts: Sequence[str] = (),
        dropped: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Appends one line. NaN and infinity become null, because JSON has no word for them.

        `prompts` are the ids of the prompts that this step learned from, `dropped` those that it gave up, by reason:
        over a run's steps, the ledger of its prompts.

        Raises:
            ValueError: this step, or a later one, is in the file already.
            OSError: the line cannot be written.
        """
        if step <= self._last_step:
            raise ValueError(
                f"{self._path}: step {step} comes after step {self._last_step}; log each step once, "
                f"and on resume call truncate_after(<the checkpoint's step>) first"
            )
        row: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        row |= {key: _finite(value) for key, value in metrics.items()}
        if prompts:
            row["prompts"] = list(prompts)
        if dropped:
            row["dropped"] = {reason: list(ids) for reason, ids in dropped.items()}
        self._stream.write(json.dumps(row, allow_nan=False) + "\n")
        self._stream.flush()
        self._last_step = step

    def truncate_after(self, step: int) -> int:
        """Moves the lines of later steps to the superseded file (-1: all), and returns how many.

        After a crash in between, a moved line may be in both files, but none is lost.
        """
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        later = [line for line in lines if json.loads(line)["step"] > step]
        if later:
            with self._superseded.open("a", encoding="utf-8") as stream:
                stream.writelines(later)
                stream.flush()
                os.fsync(stream.fileno())
            self._stream.close()
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            write_atomically(self._path, "".join(kept), durable=True)
            self._stream = self._path.open("a", encoding="utf-8")
        self._last_step = min(self._last_step, step)
        return len(later)

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The file's rows in order; null reads as NaN. A half-written last line is left out.

    Raises:
        ValueError: another line is broken.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith("\n"):
                return
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
            yield {key: math.nan if value is None else value for key, value in row.items()}


def _finite(value: float) -> float | None:
    """Also turns NumPy's and torch's scalars, which `json` does not know, into Python's."""
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else None


def _cut_half_written_line(path: Path) -> None:
    """After a crash the last line may lack its end; that step is done again anyway."""
    if not path.exists():
        return
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        with path.open("r+b") as stream:
            stream.truncate(complete)
