"""`metrics.jsonl`: the complete record of a run's metrics, append-only, with one JSON object per step.

Steps are unique and increase. Before a resumed run repeats steps, their rows are moved to another file.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.core.errors import RefusedError
from cluster.core.files import open_to_append, write_atomically
from cluster.core.reading import FIX, RECORD_MIB, object_of, open_regular, read_bytes, read_text, shown_path
from cluster.core.renamed import current_row
from cluster.core.text import json_text
from cluster.run_state.run_lock import RunDirectoryLostError

_LISTS = ("prompts", "dropped")
"""The entries of a row that are not metrics."""
_MAX_STEP = 2**63 - 1
_LARGEST = sys.float_info.max
"""The largest number that is a float: JSON's integers have no limit."""


class MetricsFile:
    """Appends steps to the file. When `log` returns, the line has been handed to the operating system, and when `sync`
    returns, it is on the disk.

        with MetricsFile(run.metrics_file, run.superseded_metrics_file) as metrics:
            metrics.truncate_after(checkpoint_step)  # on resume only
            metrics.log(51, {"reward/mean": 0.25})

    Raises:
        OSError: if the file cannot be opened or written (on a full disk, for example).
        RefusedError: if a line other than the last one is broken, or a file is not a regular one.
    """

    def __init__(self, path: Path, superseded: Path) -> None:
        self._path = path
        self._superseded = superseded
        _cut_half_written_line(path)
        self._last_step = max((row["step"] for row in read_metrics(path)), default=-1)
        self._stream = open_to_append(path)
        self._opened = os.fstat(self._stream.fileno())

    def log(
        self,
        step: int,
        metrics: Mapping[str, float],
        prompts: Sequence[str] = (),
        dropped: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Append one line. NaN and infinity become null, because JSON cannot express them.

        Args:
            prompts: The ids of the prompts that this step trained on.
            dropped: The ids of the prompts that this step dropped, by reason. Together, the rows of a run list the fate
                of each of its prompts.

        Raises:
            ValueError: if the file already has this step or a later one.
            OSError: if the line cannot be written.
        """
        if step <= self._last_step:
            raise ValueError(
                f"{self._path}: step {step} comes after step {self._last_step}; log each step once, "
                f"and on resume call truncate_after(<the checkpoint's step>) first"
            )
        row: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        row |= metrics
        if prompts:
            row["prompts"] = list(prompts)
        if dropped:
            row["dropped"] = {reason: list(ids) for reason, ids in dropped.items()}
        self._stream.write(f"{json_text(row)}\n")
        self._stream.flush()
        self._last_step = step

    def check(self) -> None:
        """Make sure that the file is still in its place.

        Raises:
            RunDirectoryLostError: if it was deleted or replaced.
        """
        if not (self._path.exists() and os.path.samestat(self._opened, self._path.stat())):
            raise RunDirectoryLostError(
                f"{self._path} was deleted, moved or replaced while the run was writing it: the run cannot continue "
                "without its directory"
            )

    def sync(self) -> None:
        """Wait until all lines, and the name of the file, are on the disk.

        Raises:
            OSError: if they cannot be written.
        """
        os.fsync(self._stream.fileno())
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def truncate_after(self, step: int) -> int:
        """Move the lines of later steps to the superseded file (-1 moves all of them). Return the number of lines.

        After a crash in between, moved lines may be in both files, but none is lost.
        """
        lines = (
            read_text(self._path, RECORD_MIB).removesuffix("\n").split("\n")
        )  # as `read_metrics` divides it
        lines = [f"{line}\n" for line in lines if line]
        later = [line for line in lines if json.loads(line)["step"] > step]
        if later:
            with open_to_append(self._superseded) as stream:
                stream.writelines(later)
                stream.flush()
                os.fsync(stream.fileno())
            self._stream.close()
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            write_atomically(self._path, "".join(kept), durable=True)
            self._stream = open_to_append(self._path)
            self._opened = os.fstat(self._stream.fileno())
        self._last_step = min(self._last_step, step)
        return len(later)

    def close(self) -> None:
        """Close the file."""
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


def read_metrics(path: Path, *, increasing: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the file's rows in order, with NaN for null. A half-written last line is left out.

    Metrics that an earlier version wrote have their present keys.

    Args:
        increasing: Whether steps must increase, as they do in `metrics.jsonl`.

    Raises:
        RefusedError: if the file cannot be read, or another line is broken.
    """
    try:
        descriptor = open_regular(path)
    except FileNotFoundError:
        return
    last_step = -1
    with os.fdopen(descriptor, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                return
            where = f"{shown_path(path)}, line {number}"
            row = _row(line, where)
            if increasing and row["step"] <= last_step:
                raise RefusedError(f"{where}: step {row['step']} comes after step {last_step}; {FIX}")
            last_step = row["step"]
            yield row


def _row(line: bytes, where: str) -> dict[str, Any]:
    """Return a row: a step, numbers by the names of metrics, and lists of prompts.

    Raises:
        RefusedError: if it is anything else.
    """
    try:
        row = object_of(line.decode("utf-8"), where)
    except UnicodeDecodeError as error:
        raise RefusedError(f"{where}: byte {error.start + 1} is not UTF-8; {FIX}") from error
    if not isinstance(row.get("dropped", {}), dict) or not isinstance(row.get("prompts", []), list):
        raise RefusedError(f"{where}: prompts must be a list, and dropped a mapping of lists; {FIX}")
    step = row.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step <= _MAX_STEP:
        raise RefusedError(f"{where}: it has no number of a step; {FIX}")
    row = current_row(row)
    for key, value in row.items():
        if value is None:
            row[key] = math.nan
        elif key not in _LISTS and not (isinstance(value, int | float) and abs(value) <= _LARGEST):
            raise RefusedError(f"{where}: the value of {key[:40]!r} is not a number; {FIX}")
    return row


def _cut_half_written_line(path: Path) -> None:
    """Remove a last line without an end, which a crash may leave. The resumed run repeats that step anyway."""
    try:
        content = read_bytes(path, RECORD_MIB)
    except FileNotFoundError:
        return
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        with os.fdopen(open_regular(path, flags=os.O_RDWR), "r+b") as stream:
            stream.truncate(complete)
