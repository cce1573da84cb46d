"""The console for programs: one JSON object per line on stdout, `kind` first."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console

from cluster.tracking.console import RunConsole


class JsonConsole(RunConsole):
    """Says what `RunConsole` says, as

    {"kind": "stage" | "event" | "warning" | "step" | "summary", "time": 1795600000.0, ...}

    with `text`, or for a step `step` and `metrics`, or for the summary `summary`. What is not finite is null.
    """

    def __init__(self, name: str, steps: int, *, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        super().__init__(name, steps, console=Console(file=self._stream, force_terminal=False))

    def warning(self, text: str) -> None:
        self._say("warning", text=text)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._end_stage()
        self._training = True
        known = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        self._say("step", step=step, metrics=known)

    def summary(self, summary: Mapping[str, Any]) -> None:
        self._end_stage()
        self._say("summary", summary=dict(summary))

    def _line(self, text: str, kind: str = "event") -> None:
        self._say(kind, text=text)

    def _end_stage(self, *, failed: bool = False) -> None:
        self._stage = None

    def _say(self, kind: str, **told: Any) -> None:
        line = json.dumps({"kind": kind, "time": round(time.time(), 3), **told}, default=str)
        print(line, file=self._stream, flush=True)
