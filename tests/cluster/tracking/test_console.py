"""The console: it fits 80 columns, shows the metrics correctly, and restores the terminal."""

from __future__ import annotations

import io
import json
import math
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from cluster.commands.exits import explained_exits
from cluster.tracking import JsonConsole, RunConsole
from cluster.tracking.console_view import View, live, plain_line, summary_rows
from cluster.tracking.formats import duration, rounded, short, sparkline, stacked_bar, time_legend, time_parts
from tests import PROJECT

TYPICAL = {
    "reward/mean": 0.381,
    "reward/correct_fraction": 0.36,
    "reward/error_fraction": 0.02,
    "reward/zero_variance_fraction": 0.25,
    "eval/pass_at_1": 0.41,
    "eval/pass_at_1_stderr": 0.021,
    "objective/alpha": 0.42,
    "objective/positive_fraction": 0.38,
    "objective/negative_fraction": 0.62,
    "objective/loss": -0.0123,
    "objective/grad_norm": 0.81,
    "objective/entropy": 1.234,
    "response_length/mean": 1128.3,
    "response_length/std": 343.1,
    "response_length/min": 12,
    "response_length/max": 2048,
    "response_length/truncated_fraction": 0.031,
    "staleness/mean": 0.43,
    "staleness/max": 1,
    "logprob_gap/mean": 0.00312,
    "logprob_gap/max": 0.2134,
    "throughput/rollout_tokens_per_s": 12345.6,
    "throughput/learner_tokens_per_s": 4567.8,
    "time/step_s": 12.3,
    "time/rollout_s": 7.3,
    "time/learn_s": 3.1,
    "time/publish_s": 0.5,
    "time/evaluate_s": 2.5,
    "time/checkpoint_s": 0.9,
    "fleet/healthy_workers": 15,
    "fleet/workers": 16,
    "fleet/restarts": 1,
    "progress/weight_version": 437,
    "progress/epoch": 1.25,
    "progress/prompts_trained": 13984,
}
OTHER_KEYS = [
    "eval/response_length_mean",
    "objective/clip_fraction_low",
    "objective/clip_fraction_high",
    "objective/learning_rate",
    "logprob_gap/probe_max",
]
VALUES = st.floats(0, 1e6, width=32) | st.just(math.nan)


def rendered(view: View, width: int = 80) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None, force_terminal=True)
    with console.capture() as capture:
        console.print(live(view))
    return capture.get().splitlines()


def plain_console() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=False, width=80, highlight=False), stream


@given(metrics=st.dictionaries(st.sampled_from([*TYPICAL, *OTHER_KEYS]), VALUES), step=st.integers(0, 10**6))
def test_any_metrics_render_within_80_columns(metrics: dict[str, float], step: int) -> None:
    view = View("a-run-with-quite-a-long-name-1234567890", 10**6).after(step, metrics)
    for line in rendered(view):
        assert cell_len(line) <= 80
    assert "\n" not in plain_line(view)


def test_a_typical_step_is_shown_completely_at_80_columns() -> None:
    view = View("countdown-a_hpo-seed0", 1000)
    for step in range(438):
        view = view.after(step, {"eval/pass_at_1": 0.1} if step == 0 else TYPICAL)
    text = "\n".join(rendered(view))
    assert "…" not in text  # nothing was cut
    for said in (
        "step 437/1000", "44 %", "2 h 27 min left", "0.100 → 0.410 ± 0.021",
        "0.381", "correct 36 %", "σ=0 25 %", "α 0.42", "A<0 62 %",
        "1128 ± 343", "staleness  0.43, max 1", "rollout 12.3k", "learner 4.57k", "16 s", "█rollout 46%",
        "15/16 healthy",
    ):  # fmt: skip
        assert said in text


def test_plain_lines_are_aligned() -> None:
    view = View("run", 1000)
    without = {key: value for key, value in TYPICAL.items() if not key.startswith("eval/")}
    lines = [plain_line(view.after(step, metrics)) for step, metrics in ((1, TYPICAL), (1000, without))]
    assert len({line.index("α 0.42") for line in lines}) == 1
    assert len({len(line) for line in lines}) == 1


@given(
    seconds=st.dictionaries(
        st.sampled_from(["step", "rollout", "learn", "publish", "evaluate", "checkpoint"]), st.floats(0, 1e4)
    ),
    width=st.integers(1, 100),
)
def test_the_bar_has_the_requested_width_and_proportional_parts(
    seconds: dict[str, float], width: int
) -> None:
    parts = time_parts({f"time/{name}_s": value for name, value in seconds.items()})
    if not parts:
        assert not any(seconds.values())
        return
    bar = stacked_bar(parts, width).plain
    assert len(bar) == width
    for name, value in parts.items():
        glyph = stacked_bar({name: 1.0}, 1).plain
        assert abs(bar.count(glyph) - width * value / sum(parts.values())) <= 1


def test_the_rest_of_a_step_is_other() -> None:
    parts = time_parts({"time/step_s": 10, "time/rollout_s": 6, "time/learn_s": 3, "time/evaluate_s": 10})
    assert parts == {"rollout": 6, "learn": 3, "evaluate": 10, "other": 1}
    assert time_legend(parts).plain == "▚eval 50% █rollout 30% ▓learn 15% ░other 5%"


@given(values=st.lists(VALUES, max_size=60), width=st.integers(1, 30))
def test_a_sparkline_has_its_extremes_at_bottom_and_top(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == min(width, len(values))
    finite = {value for value in values if math.isfinite(value)}
    if len(values) <= width and len(finite) > 1:
        assert line[values.index(min(finite))] == "▁"
        assert line[values.index(max(finite))] == "█"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0.0 s"), (9.96, "10 s"), (99, "99 s"), (99.6, "2 min"), (3599, "60 min"), (10**4, "2 h 47 min")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("value", "said"), [(0, "0"), (999, "999"), (999.9, "1k"), (12345, "12.3k"), (2e6, "2M")]
)
def test_short_counts(value: float, said: str) -> None:
    assert short(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (0.0341, "0.034"), (9.94, "9.9"), (9.96, "10"), (12345.6, "12346"), (math.inf, "?")],
)
def test_rounded_numbers(value: float, said: str) -> None:
    assert rounded(value) == said


def test_the_remaining_time_includes_evaluations() -> None:
    view = View("run", 10).after(1, {"time/step_s": 10}).after(2, {"time/step_s": 10, "time/evaluate_s": 20})
    assert view.remaining_s == 8 * (10 + 30) / 2


def test_a_log_has_one_line_per_stage_step_and_event() -> None:
    console, stream = plain_console()
    with RunConsole("run", 2, console=console) as run:
        run.stage("starting Ray")
        for percent in range(0, 101, 10):
            run.stage(f"building the starter model {percent} %")
        run.step(0, {"eval/pass_at_1": 0.125})
        run.event("rollout-1 [died] " + 30 * "long ")
        run.step(1, {"reward/mean": 0.5})
        run.summary({"pass_at_1": {"last": 0.5}})
    lines = [re.sub(r"^\d\d:\d\d:\d\d  ", "", line).rstrip() for line in stream.getvalue().splitlines()]
    assert [" ".join(line.split()) for line in lines] == [
        "starting Ray",
        "building the starter model 0 %",
        "step 0/2 pass@1 0.125",
        "rollout-1 [died] " + 29 * "long " + "long",
        "step 1/2 reward 0.500",
        "pass_at_1/last 0.5",
    ]
    assert "\x1b" not in stream.getvalue()


def test_a_log_repeats_a_long_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    console, stream = plain_console()
    with RunConsole("run", 2, console=console) as run:
        run.stage("building the starter model 0 %")
        run.stage("building the starter model 1 %")
        monkeypatch.setattr("cluster.tracking.console.PLAIN_PROGRESS_S", 0.0)
        run.stage("building the starter model 40 %")
    assert re.findall(r"\d+ %", stream.getvalue()) == ["0 %", "40 %"]


def test_a_failure_names_its_stage() -> None:
    console, stream = plain_console()
    run = RunConsole("run", 2, console=console)
    run.stage("starting Ray")
    with pytest.raises(RuntimeError), run:
        raise RuntimeError
    assert re.search(r"✗ starting Ray  stopped after \d", stream.getvalue())


def test_quiet_mode_shows_only_the_summary() -> None:
    console, stream = plain_console()
    with RunConsole("run", 2, quiet=True, console=console) as run:
        run.stage("starting Ray")
        run.event("hello")
        run.step(1, TYPICAL)
        run.summary({"pass_at_1": 0.5})
    assert stream.getvalue() == "pass_at_1  0.5\n"


@pytest.mark.parametrize("quiet", [True, False])
def test_a_warning_is_shown_in_quiet_mode_too(quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """In quiet mode it goes to stderr, because stdout has only the summary. It is shown once, unchanged."""
    text = "rollout-1 was lost [no markup]; " + 30 * "long "
    with RunConsole("run", 2, quiet=quiet) as run:
        run.event("hello")
        run.warning(text)
    output, errors = capsys.readouterr()
    (line,) = (errors if quiet else output.partition("hello\n")[2]).splitlines()
    assert line.endswith(text)
    assert text not in (output if quiet else errors)


def test_a_resumed_run_shows_its_history() -> None:
    run = RunConsole("run", 9)
    run.restore(
        [{"step": 0, "time": 1e9, "eval/pass_at_1": 0.125}, {"step": 1, "time": 1e9, "reward/mean": 0.5}]
    )
    run.step(2, {"eval/pass_at_1": 0.25})
    assert "0.125 → 0.250" in "\n".join(rendered(run._view))


def test_summary_rows_flatten() -> None:
    assert summary_rows({"a": 1, "b": {"c": 0.123456, "d": {"e": "x"}}}) == [
        ("a", "1"),
        ("b/c", "0.1235"),
        ("b/d/e", "x"),
    ]


def test_ctrl_c_restores_the_terminal() -> None:
    code = (
        "import time\n"
        "from cluster.tracking import RunConsole\n"
        "with RunConsole('run', 10) as run:\n"
        "    run.stage('warming up')\n"
        "    run.step(1, {'reward/mean': 0.5})\n"
        "    run.stage('ready')\n"
        "    time.sleep(60)\n"
    )
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, cwd=PROJECT, env=environment
    )
    os.close(slave)
    output = b""
    interrupted = False
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and select.select([master], [], [], 60)[0]:
        try:
            part = os.read(master, 4096)
        except OSError:  # on Linux: the other end of the pseudo-terminal is closed
            break
        output += part
        if b"ready" in output and not interrupted:
            interrupted = True
            process.send_signal(signal.SIGINT)
    os.close(master)
    assert process.wait(timeout=30) != 0
    assert b"KeyboardInterrupt" in output
    assert output.count(b"\x1b[?25l") >= 1
    assert output.rfind(b"\x1b[?25h") > output.rfind(b"\x1b[?25l")  # the cursor is visible again


# --- The console for programs


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
        console.summary({"pass_at_1": 0.5, "where": Path("runs"), "loss": math.inf})
    assert told(stream) == [
        {"kind": "stage", "text": "building the model: 1 %"},
        {"kind": "stage", "text": "training"},
        {"kind": "step", "step": 2, "metrics": {"reward/mean": 0.25, "objective/loss": None}},
        {"kind": "event", "text": "a\nb \x1b[31m"},
        {"kind": "warning", "text": "lost"},
        {"kind": "summary", "summary": {"pass_at_1": 0.5, "where": "runs", "loss": None}},
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
