"""The output, the files and the exit codes of `launch.py plan`. The sampling itself is replaced."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.commands.evaluate.run import Sample, evaluate_in, is_ready
from cluster.core.config import RunConfig
from cluster.core.errors import RefusedError
from cluster.core.types import Split
from cluster.run_state.lock_file import LockFile
from cluster.run_state.run_directory import RunDirectory
from cluster.run_state.run_lock import lock_paths
from cluster.tracking import RunConsole
from launch import app
from rollout.fleet.state import FleetState
from tests.builders import make_group

cli = CliRunner()
Sampling = Callable[..., list[tuple[RunConfig, Split]]]

MIXED = [[1.0] + [0.0] * 15, [0.0] * 16, [1.0] * 4 + [0.0] * 12, [0.0] * 16]


@pytest.fixture
def sampling(monkeypatch: pytest.MonkeyPatch) -> Sampling:
    """Replace the sampling by groups with these rewards, or by an error."""

    def stand_in(
        rewards: list[list[Any]] = MIXED, error: BaseException | None = None
    ) -> list[tuple[RunConfig, Split]]:
        started: list[tuple[RunConfig, Split]] = []

        def evaluate(
            directory: RunDirectory,
            config: RunConfig,
            split: Split,
            console: RunConsole,
            *,
            whole_fleet: bool,
        ) -> tuple[Sample, dict[str, Any]]:
            started.append((config, split))
            assert whole_fleet, "the time is that of all workers"
            console.event("on Ray on this machine")
            if error:
                raise error
            directory.path.mkdir(parents=True, exist_ok=True)
            return Sample([make_group(row) for row in rewards], 2.0, config.rollout.workers), {}

        monkeypatch.setattr("cluster.commands.plan.run.evaluate_in", evaluate)
        return started

    return stand_in


def test_plan_samples_training_prompts_and_writes_numbers_and_a_page(sound: Path, sampling: Sampling) -> None:
    started = sampling()
    options = ["--prompts", "64", "--responses", "8", "--address", "head:6379"]
    result = cli.invoke(app, ["plan", str(sound), "seed=3", *options])
    assert result.exit_code == 0, result.output
    ((config, split),) = started
    assert (config.seed, split, config.cluster.address) == (3, "train", "head:6379")
    assert (config.evaluation.prompts, config.evaluation.responses_per_prompt) == (64, 8)
    assert "settings: rollout.prompts_per_step=" in result.stdout
    directory = sound.parent / "runs" / "sound.plan"
    assert {file.name for file in directory.iterdir()} == {"plan.json", "plan.html"}
    assert f"page: {directory / 'plan.html'}" in result.stdout
    assert json.loads((directory / "plan.json").read_text())["prompts"] == 4
    assert not (sound.parent / "runs" / "sound").exists(), "there is no run"


def test_plan_prints_json_and_nothing_else(sound: Path, sampling: Sampling) -> None:
    sampling()
    result = cli.invoke(app, ["plan", str(sound), "--json"])
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 1
    file = sound.parent / "runs" / "sound.plan" / "plan.json"
    assert json.loads(result.stdout) == json.loads(file.read_text())
    assert "on Ray on this machine" in result.stderr


def test_the_page_is_written_where_the_user_says(sound: Path, sampling: Sampling, tmp_path: Path) -> None:
    sampling()
    page = tmp_path / "here.html"
    result = cli.invoke(app, ["plan", str(sound), "-o", str(page)])
    assert result.exit_code == 0, result.output
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert [file.name for file in (sound.parent / "runs" / "sound.plan").iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("rewards", "line"),
    [([[0.0] * 16] * 4, "none of 64 responses to 4 prompts"), ([[1.0] * 16] * 4, "all of 64 responses")],
    ids=["never", "always"],
)
@pytest.mark.parametrize("json_alone", [[], ["--json"]], ids=["table", "json"])
def test_a_model_without_contrast_is_one_line_and_exit_code_1(
    sound: Path, sampling: Sampling, rewards: list[list[float]], line: str, json_alone: list[str]
) -> None:
    sampling(rewards)
    result = cli.invoke(app, ["plan", str(sound), *json_alone])
    assert result.exit_code == 1
    assert len([shown for shown in result.stdout.splitlines() if line in shown]) == 1
    assert (sound.parent / "runs" / "sound.plan" / "plan.html").exists()


def test_bad_input_is_a_line_each_and_nothing_starts(sound: Path, sampling: Sampling) -> None:
    started = sampling()
    before = sorted(sound.parent.rglob("*"))
    nowhere = sound.parent / "nowhere" / "page.html"
    for arguments, lines in {
        ("--prompts", "0"): ["--prompts: expected a number greater than or equal to 1"],
        ("--responses", "5000"): ["--responses: expected a number less than or equal to 4096, got '5000'"],
        ("-o", str(sound.parent)): ["is not a file"],
        ("-o", "/dev/null"): ["/dev/null is not a file"],
        ("-o", str(nowhere)): ["nowhere is not a directory"],
        ("modle.source=x",): ["modle"],
        ("rollout.workers=1000",): ["rollout"],
    }.items():
        result = cli.invoke(app, ["plan", str(sound), *arguments])
        assert result.exit_code == 2, (arguments, result.output)
        assert len(result.stderr.splitlines()) == len(lines), result.stderr
        for line in lines:
            assert line in result.stderr
    assert started == []
    assert sorted(sound.parent.rglob("*")) == before


def test_plan_needs_no_resources_for_a_learner(sound: Path, sampling: Sampling) -> None:
    sampling()
    assert cli.invoke(app, ["plan", str(sound), "learner.ranks=1000"]).exit_code == 0


def test_failing_verifiers_give_no_plan(sound: Path, sampling: Sampling) -> None:
    """A training would stop as well."""
    sampling([[None] * 8 + [1.0] * 8])
    result = cli.invoke(app, ["plan", str(sound)])
    assert result.exit_code == 1
    assert "in the sample, the verifier failed on 8 of 16 responses" in result.stdout
    assert "Traceback" not in result.output
    assert not (sound.parent / "runs" / "sound.plan" / "plan.json").exists()


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [(TimeoutError("no verdict"), 1, "stopped: no verdict"), (KeyboardInterrupt(), 130, "interrupted")],
    ids=["failed", "interrupted"],
)
def test_a_plan_that_ends_early_says_why(
    sound: Path, sampling: Sampling, error: BaseException, code: int, line: str
) -> None:
    sampling(error=error)
    result = cli.invoke(app, ["plan", str(sound)])
    assert result.exit_code == code
    assert line in result.output
    assert "Traceback" not in result.output


def test_a_second_plan_is_refused_before_anything_starts(
    sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training and an evaluation of the same name may run meanwhile: their directories are others."""
    monkeypatch.setattr(
        "cluster.commands.evaluate.run.ray_started", lambda *_: pytest.fail("Ray was started")
    )
    (path,) = lock_paths(sound.parent / "runs" / "sound.plan")
    other = LockFile.take(path)
    before = sorted(sound.parent.rglob("*"))
    result = cli.invoke(app, ["plan", str(sound)])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert "sound.plan is in use by" in line
    assert sorted(sound.parent.rglob("*")) == before
    other.release()


@pytest.mark.parametrize("command", ["plan", "eval"])
def test_the_directory_of_a_run_is_not_touched(
    sound: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(
        "cluster.commands.evaluate.run.ray_started", lambda *_: pytest.fail("Ray was started")
    )
    run = RunDirectory(sound.parent / "runs" / f"sound.{command}")
    run.create()
    run.write_config(RunConfig(name=f"sound.{command}"))
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    result = cli.invoke(app, [command, str(sound)])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert "this is the directory of a run" in line
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before
    with pytest.raises(RefusedError, match="directory of a run"):
        evaluate_in(run, RunConfig(), "train", RunConsole("sound", 0))


def test_the_whole_fleet_is_ready_when_every_worker_that_is_not_given_up_can_sample() -> None:
    state = FleetState(workers=2, max_consecutive_failures=0)
    state.serve_as_loaded()
    assert not is_ready(state, whole_fleet=False)
    state.started("rollout-0")
    assert is_ready(state, whole_fleet=False)
    assert not is_ready(state, whole_fleet=True), "the other one is still starting"
    state.lost("rollout-1")
    assert is_ready(state, whole_fleet=True), "it is dead"
    state.lost("rollout-0")
    assert not is_ready(state, whole_fleet=True), "there is no worker left"
