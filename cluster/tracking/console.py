"""The terminal: a live view on a terminal, plain lines in logs and pipes, or JSON lines for programs.

Threads: `event` and `warning` may be called from any thread; `stage`, `step` and `summary` only from the controller's.
Nothing here takes a lock, because rich calls `_renderable` while it holds its own lock. Instead the view is replaced as
a whole.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from cluster.core.errors import RefusedError
from cluster.core.files import open_to_append
from cluster.core.output import TolerantStream, tolerant
from cluster.core.text import json_text, plain_text
from cluster.tracking.console_view import View, live, plain_line, summary_rows
from cluster.tracking.formats import duration

PLAIN_PROGRESS_S = 20.0
"""Without a live view, the progress of a long stage is printed at most this often."""


class RunConsole:
    """Shows the state of the run at the terminal.

        with RunConsole("my-run", steps=100) as console:
            console.stage("starting Ray")
            console.step(1, {"reward/mean": 0.25})
            console.event("rollout-1 was replaced")
            console.summary({"pass_at_1": 0.41})

    With `quiet` it shows only the closing summary, and warnings on stderr. Leaving the `with` block always restores the
    terminal.

    A console that is lost (a broken pipe, a full disk under a log, a closed terminal) never reaches the caller: what it
    would have shown is written to the file of `continue_in`, with the reason first.
    """

    def __init__(self, name: str, steps: int, *, quiet: bool = False, console: Console | None = None) -> None:
        self._console, self._output = _tolerant_console(console or Console(highlight=False))
        self._stderr, self._errors = _tolerant_console(Console(stderr=True, highlight=False))
        self._rest: Path | None = None
        """The file for the rest of the output, once the console is lost."""
        self._noted: set[str] = set()
        """The reasons that were written to this file."""
        self._quiet = quiet
        self._view = View(name, steps)
        self._training = False
        self._stage: tuple[str, float] | None = None
        self._stage_shown = 0.0
        self._spinner = Spinner("dots", style="cyan")
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._quiet:
            self._live = Live(
                console=self._console, get_renderable=self._renderable, refresh_per_second=4, transient=False
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end_stage(failed=error is not None)
        self.close()

    def close(self) -> None:
        """Stop the live view and leave its last state on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def continue_in(self, file: Path) -> None:
        """From now on, write what a lost console does not show to `file`. If it cannot be written either, the output
        ends silently: `metrics.jsonl` has all metrics."""
        self._rest = file
        self._output.is_missed = False

    def restore(self, rows: Iterable[Mapping[str, float]]) -> None:
        """Load the history of a resumed run: the rows of `metrics.jsonl`, in order."""
        for row in rows:
            metrics = {key: value for key, value in row.items() if key not in ("step", "time")}
            self._view = self._view.after(int(row["step"]), metrics)

    def stage(self, text: str) -> None:
        """Show what is being done now and may take a while. Texts that differ only in numbers are the same stage."""
        if self._stage is not None and _without_numbers(self._stage[0]) == _without_numbers(text):
            self._stage = (text, self._stage[1])
            if time.monotonic() - self._stage_shown < PLAIN_PROGRESS_S:
                return
        else:
            self._end_stage()
            self._stage = (text, time.monotonic())
        self._stage_shown = time.monotonic()
        if self._live is None and not self._training:
            self._line(text, "stage")

    def event(self, text: str) -> None:
        """Print a line with the time of day."""
        self._line(text)

    def warning(self, text: str) -> None:
        """Print a line about a failure; with `quiet` it goes to stderr."""
        if self._quiet:
            self._stderr.print(_with_time(text), soft_wrap=True)
            self._continue(self._errors, _with_time(text).plain)
        else:
            self.event(text)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a step."""
        self._end_stage()
        self._training = True
        self._view = self._view.after(step, metrics)
        if self._live is None or self._output.lost:
            self._line(plain_line(self._view))

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Show the summary of the run: a panel on a terminal, otherwise one line per entry."""
        self._end_stage()
        self.close()
        rows = [(plain_text(key), plain_text(value)) for key, value in summary_rows(summary)]
        if self._console.is_terminal:
            table = Table.grid(padding=(0, 3))
            for key, value in rows:
                table.add_row(Text(key, "cyan"), Text(value))
            title = Text(f"{self._view.name} is finished", "bold green")
            self._console.print(Panel(table, title=title, title_align="left", expand=False, padding=(0, 1)))
            self._continue(self._output, "\n".join(f"{key}  {value}" for key, value in rows))
        else:
            width = max((len(key) for key, _ in rows), default=0)
            for key, value in rows:
                self._print(Text(f"{key:<{width}}  {value}"))

    def _renderable(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self._training:
            parts.append(live(self._view))
        if (stage := self._stage) is not None:
            text, since = stage
            self._spinner.update(
                text=Text.assemble(plain_text(text), (f"  {duration(time.monotonic() - since)}", "dim"))
            )
            parts.append(self._spinner)
        return Group(*parts)

    def _end_stage(self, *, failed: bool = False) -> None:
        stage, self._stage = self._stage, None
        if stage is None or self._quiet or (self._training and not failed):
            return
        text, since = stage
        took = duration(time.monotonic() - since)
        if failed:
            self._print(Text.assemble(("✗ ", "red"), plain_text(text), (f"  stopped after {took}", "dim")))
        elif self._live is not None:
            self._print(Text.assemble(("✓ ", "green"), plain_text(text), (f"  {took}", "dim")))

    def _line(self, text: str, kind: str = "event") -> None:
        if not self._quiet:
            self._print(_with_time(text))

    def _print(self, text: Text) -> None:
        # In a log, a line is a line: only a terminal wraps.
        self._console.print(text, soft_wrap=not self._console.is_terminal)
        self._continue(self._output, text.plain)

    def _continue(self, stream: TolerantStream, text: str) -> None:
        """If `stream` is lost, write `text` to the file for the rest of the output."""
        if stream.lost is None or self._rest is None:
            return
        stream.is_missed = False
        if stream.lost not in self._noted:
            self._noted.add(stream.lost)
            note = f"the console was lost ({stream.lost}); its output continues here"
            text = f"{_with_time(note).plain}\n{text}"
        with suppress(OSError, RefusedError), open_to_append(self._rest, errors="replace") as rest:
            rest.write(f"{text}\n")


class JsonConsole(RunConsole):
    """Writes everything that `RunConsole` shows to stdout, as one JSON object per line, `kind` first:

    {"kind": "stage" | "event" | "warning" | "step" | "summary", "time": 1795600000.0, ...}

    A step has `step` and `metrics`, a summary has `summary`, the others have `text`. Values that are not finite are
    null.
    """

    def __init__(self, name: str, steps: int, *, stream: TextIO | None = None) -> None:
        super().__init__(name, steps, console=Console(file=stream or sys.stdout, force_terminal=False))

    def warning(self, text: str) -> None:
        self._write("warning", text=text)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._end_stage()
        self._training = True
        self._write("step", step=step, metrics=metrics)

    def summary(self, summary: Mapping[str, Any]) -> None:
        self._end_stage()
        self._write("summary", summary=summary)

    def _line(self, text: str, kind: str = "event") -> None:
        self._write(kind, text=text)

    def _end_stage(self, *, failed: bool = False) -> None:
        self._stage = None

    def _write(self, kind: str, **content: Any) -> None:
        line = json_text({"kind": kind, "time": round(time.time(), 3), **content})
        print(line, file=self._output, flush=True)
        self._continue(self._output, line)


def _tolerant_console(console: Console) -> tuple[Console, TolerantStream]:
    """Return `console` with a stream that never fails, and this stream."""
    stream = tolerant(cast("TextIO", console.file))
    console.file = cast("TextIO", stream)
    return console, stream


def _with_time(text: str) -> Text:
    return Text.assemble((time.strftime("%H:%M:%S  "), "dim"), plain_text(text))


def _without_numbers(text: str) -> str:
    return re.sub(r"[\d.,]+", "", text)
