"""`metrics.jsonl`: every line is JSON, steps are unique, and a crash costs at most one line."""

from __future__ import annotations

import errno
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.tracking import MetricsFile, read_metrics


def paths(directory: Path) -> tuple[Path, Path]:
    return directory / "metrics.jsonl", directory / "metrics.superseded.jsonl"


def rows(path: Path) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    text = path.read_text(encoding="utf-8")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def steps(path: Path) -> list[int]:
    return [row["step"] for row in rows(path)]


def test_a_row_has_the_prompts_that_the_step_trained_on_and_dropped(tmp_path: Path) -> None:
    with MetricsFile(*paths(tmp_path)) as metrics:
        metrics.log(1, {}, ["train/0/1"], {"all incorrect": ["train/0/2", "train/0/3"]})
        metrics.log(2, {}, ["train/0/4"], {})
    found = list(read_metrics(paths(tmp_path)[0]))
    assert [row["prompts"] for row in found] == [["train/0/1"], ["train/0/4"]]
    assert [row.get("dropped") for row in found] == [{"all incorrect": ["train/0/2", "train/0/3"]}, None]


def test_values_that_are_not_finite_are_null_and_read_as_nan(tmp_path: Path) -> None:
    with MetricsFile(*paths(tmp_path)) as metrics:
        metrics.log(0, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": float("nan"), "e": 0.5})
    (row,) = rows(paths(tmp_path)[0])
    assert row.pop("time") > 1.6e9
    assert row == {"step": 0, "a": None, "b": None, "c": None, "d": None, "e": 0.5}
    (read,) = read_metrics(paths(tmp_path)[0])
    assert math.isnan(read["a"])
    assert read["e"] == 0.5


def test_a_line_is_on_disk_when_log_returns(tmp_path: Path) -> None:
    metrics = MetricsFile(*paths(tmp_path))
    for step in range(3):
        metrics.log(step, {"x": step})
        assert steps(paths(tmp_path)[0])[-1] == step
    metrics.close()


@settings(max_examples=60, deadline=None)
@given(crashes=st.lists(st.tuples(st.integers(0, 8), st.integers(-1, 8)), max_size=4))
def test_over_any_crashes_and_resumptions_each_step_is_there_once(
    tmp_path_factory: pytest.TempPathFactory, crashes: list[tuple[int, int]]
) -> None:
    """Each crash: (steps done since the start, checkpoint resumed from). No logged row is lost."""
    path, superseded = paths(tmp_path_factory.mktemp("run"))
    logged = 0
    at = -1
    for done, checkpoint in [*crashes, (3, 0)]:
        with MetricsFile(path, superseded) as metrics:
            for _ in range(done):
                at += 1
                metrics.log(at, {"x": 1.0})
                logged += 1
        at = min(at, checkpoint)
        with MetricsFile(path, superseded) as metrics:
            metrics.truncate_after(at)
        assert steps(path) == list(range(at + 1))
    moved = len(steps(superseded)) if superseded.exists() else 0
    assert len(steps(path)) + moved == logged


def test_logging_continues_after_a_truncation(tmp_path: Path) -> None:
    with MetricsFile(*paths(tmp_path)) as metrics:
        for step in range(5):
            metrics.log(step, {"x": step})
        assert metrics.truncate_after(2) == 2
        metrics.log(3, {"x": 30.0})
    assert [row["x"] for row in rows(paths(tmp_path)[0])] == [0, 1, 2, 30.0]
    assert [row["x"] for row in rows(paths(tmp_path)[1])] == [3, 4]


@pytest.mark.parametrize("content", ['"a\u2028b": 1', '"a\u2029b": 1', '"a\x85b": 1', '\r"a": 1'])
def test_only_a_line_feed_ends_a_line(tmp_path: Path, content: str) -> None:
    """Another program may write characters that our JSON escapes, and that `str.splitlines` takes for line breaks."""
    path = paths(tmp_path)[0]
    lines = [f'{{"step": {step}, "time": 1, {content}}}\n' for step in range(3)]
    path.write_text("".join(lines), newline="")
    with MetricsFile(*paths(tmp_path)) as metrics:
        assert metrics.truncate_after(0) == 2
    assert path.read_bytes() == lines[0].encode()
    assert paths(tmp_path)[1].read_bytes() == "".join(lines[1:]).encode()


@pytest.mark.parametrize("step", [2, 1])
def test_an_existing_step_is_refused(tmp_path: Path, step: int) -> None:
    with MetricsFile(*paths(tmp_path)) as metrics:
        metrics.log(2, {})
    with MetricsFile(*paths(tmp_path)) as metrics, pytest.raises(ValueError, match="truncate_after"):
        metrics.log(step, {})
    assert steps(paths(tmp_path)[0]) == [2]


@pytest.mark.parametrize("kept", range(1, 30))
def test_a_half_written_last_line_is_cut(tmp_path: Path, kept: int) -> None:
    path, superseded = paths(tmp_path)
    with MetricsFile(path, superseded) as metrics:
        metrics.log(0, {"x": 1.0})
        size = path.stat().st_size
        metrics.log(1, {"x": 2.0})
    with path.open("r+b") as stream:
        stream.truncate(size + kept)
    assert [row["step"] for row in read_metrics(path)] == [0]
    with MetricsFile(path, superseded) as metrics:
        metrics.log(1, {"x": 3.0})
    assert [row["x"] for row in rows(path)] == [1.0, 3.0]


def test_a_broken_line_before_the_last_is_an_error_that_names_it(tmp_path: Path) -> None:
    path, superseded = paths(tmp_path)
    path.write_text('{"step": 0}\n{"st\n{"step": 2}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2"):
        MetricsFile(path, superseded)


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_reaches_the_caller(tmp_path: Path) -> None:
    with MetricsFile(*paths(tmp_path)) as metrics:
        metrics._stream.close()
        metrics._stream = FullDisk()  # type: ignore[assignment]
        with pytest.raises(OSError, match="No space left"):
            metrics.log(0, {"x": 1.0})
