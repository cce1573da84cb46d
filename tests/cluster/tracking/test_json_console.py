"""The console for programs: every line is JSON, and says what the console for people says."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import typer

from cluster.commands.exits import explained_exits
from cluster.tracking import JsonConsole


def told(stream: io.StringIO) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert all(list(line)[:2] == ["kind", "time"] for line in lines)
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def test_everything_is_a_line() -> None:
    stream = io.StringIO()
    with JsonConsole("run", 9, stream=stream) as console:
        console.restore([{"step": 1, "time": 0.0, "reward/mean": 0.5}])
        console.stage("building the model: 1 %")
        console.stage("building the model: 2 %")
        console.stage("training")
        console.step(2, {"reward/mean": 0.25, "objective/loss": math.nan})
        console.event("a\nb \x1b[31m")
        console.warning("lost")
        console.summary({"pass_at_1": 0.5, "where": Path("runs")})
    assert told(stream) == [
        {"kind": "stage", "text": "building the model: 1 %"},
        {"kind": "stage", "text": "training"},
        {"kind": "step", "step": 2, "metrics": {"reward/mean": 0.25, "objective/loss": None}},
        {"kind": "event", "text": "a\nb \x1b[31m"},
        {"kind": "warning", "text": "lost"},
        {"kind": "summary", "summary": {"pass_at_1": 0.5, "where": "runs"}},
    ]
    assert "\x1b" not in stream.getvalue()


def test_a_failure_is_a_warning_too(tmp_path: Path) -> None:
    stream = io.StringIO()
    with (
        pytest.raises(typer.Exit),
        JsonConsole("run", 9, stream=stream) as console,
        explained_exits(console, (OSError,), tmp_path),
    ):
        console.stage("training")
        raise OSError("no space left")
    assert [line["kind"] for line in told(stream)] == ["stage", "warning", "warning"]
    assert told(stream)[1]["text"] == "stopped: no space left"
