"""A console that is lost never ends a run: what it would have shown is in the run directory."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from cluster.tracking import JsonConsole, RunConsole
from tests.cluster.tracking.test_console import TYPICAL


class Lost(io.StringIO):
    """A stream that fails after some lines."""

    def __init__(self, lines: int, error: OSError) -> None:
        super().__init__()
        self.lines, self.error = lines, error

    def write(self, text: str) -> int:
        if self.getvalue().count("\n") >= self.lines:
            raise self.error
        return super().write(text)


def everything(run: RunConsole) -> None:
    run.stage("starting Ray")
    run.event("rollout workers: 2 → 3")
    run.step(1, TYPICAL)
    run.warning("rollout-1 was lost")
    run.step(2, TYPICAL)
    run.summary({"pass_at_1": 0.5})


ERRORS = [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device"), OSError(5, "I/O error")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.strerror)
@pytest.mark.parametrize(
    ("kind", "quiet"),
    [("plain", False), ("plain", True), ("terminal", False), ("terminal", True), ("json", False)],
)
def test_a_lost_console_continues_in_a_file(tmp_path: Path, kind: str, quiet: bool, error: OSError) -> None:
    """Wherever it is lost, every line is either on the console or, after the reason, in the file."""
    for lines in range(8):
        stream, file = Lost(lines, error), tmp_path / f"{lines}.log"
        run = (
            JsonConsole("run", 2, stream=stream)
            if kind == "json"
            else RunConsole(
                "run",
                2,
                quiet=quiet,
                console=Console(file=stream, force_terminal=kind == "terminal", width=90),
            )
        )
        with run:
            run.continue_in(file)
            everything(run)
        rest = file.read_text() if file.exists() else ""
        if rest:
            assert f"the console was lost ({error.strerror})" in rest.splitlines()[0]
        assert "pass_at_1" in stream.getvalue() + rest
        if not quiet:
            assert "2 → 3" in (stream.getvalue() + rest).replace("\\u2192", "→")


def test_without_a_file_a_lost_console_is_silent(tmp_path: Path) -> None:
    run = RunConsole("run", 2, console=Console(file=Lost(0, ERRORS[0])))
    everything(run)
    run.continue_in(tmp_path / "nowhere" / "console.log")
    everything(run)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_console_of_another_encoding_shows_what_it_can(encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    everything(RunConsole("run", 2, console=Console(file=stream)))
    stream.flush()
    assert b"rollout workers: 2 ? 3" in raw.getvalue()
    assert b"pass_at_1  0.5" in raw.getvalue()
