"""The output and the exit codes of `launch.py eval`. The sampling itself is replaced."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.core.config import RunConfig
from cluster.core.types import Split
from cluster.metrics.evaluation import evaluation_report
from cluster.run_state.lock_file import LockFile
from cluster.run_state.run_lock import lock_paths
from cluster.tracking import RunConsole
from launch import app
from tests.builders import make_group

cli = CliRunner()


Evaluation = Callable[[BaseException | None], list[tuple[RunConfig, str]]]


@pytest.fixture
def evaluation(monkeypatch: pytest.MonkeyPatch) -> Evaluation:
    """Replace the sampling by one prompt with a correct and an incorrect response, or by `error`."""

    def stand_in(error: BaseException | None) -> list[tuple[RunConfig, str]]:
        started: list[tuple[RunConfig, str]] = []

        def evaluate(config: RunConfig, split: Split, console: RunConsole) -> dict[str, Any]:
            started.append((config, split))
            console.stage("sampling")
            console.event("on Ray on this machine")
            if error:
                raise error
            return evaluation_report(config, split, [make_group([1.0, 0.0])], lambda problem: None)

        monkeypatch.setattr("cluster.commands.evaluate.run.run_evaluation", evaluate)
        return started

    return stand_in


def test_eval_measures_the_configured_model_and_prints_the_table(sound: Path, evaluation: Evaluation) -> None:
    started = evaluation(None)
    result = cli.invoke(app, ["eval", str(sound), "seed=3", "--split", "train", "--address", "head:6379"])
    assert result.exit_code == 0, result.output
    ((config, split),) = started
    assert (config.seed, split, config.cluster.address) == (3, "train", "head:6379")
    assert "50.0" in result.stdout
    assert "pass@2" in result.stdout
    assert "evaluation.html" in result.stdout
    assert not (sound.parent / "runs").exists(), "there is no run"


def test_eval_prints_json_and_nothing_else(sound: Path, evaluation: Evaluation) -> None:
    evaluation(None)
    result = cli.invoke(app, ["eval", str(sound), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert len(result.stdout.splitlines()) == 1
    assert (report["pass_at_1"], report["split"]) == (0.5, "eval")
    assert "on Ray on this machine" in result.stderr


def test_eval_refuses_what_check_refuses(sound: Path, evaluation: Evaluation) -> None:
    started = evaluation(None)
    mistakes = ["evaluation.prompts=0", "modle.source=x"]
    checked = cli.invoke(app, ["check", str(sound), *mistakes])
    evaluated = cli.invoke(app, ["eval", str(sound), *mistakes])
    assert (evaluated.exit_code, evaluated.stderr) == (2, checked.stderr)
    assert len(evaluated.stderr.splitlines()) == 2
    assert started == []


def test_eval_needs_no_resources_for_a_learner(sound: Path, evaluation: Evaluation) -> None:
    started = evaluation(None)
    big = "learner.ranks=1000"
    assert cli.invoke(app, ["check", str(sound), big]).exit_code == 2
    assert cli.invoke(app, ["eval", str(sound), big]).exit_code == 0
    assert cli.invoke(app, ["eval", str(sound), "rollout.workers=1000"]).exit_code == 2
    assert len(started) == 1


@pytest.mark.parametrize("json_alone", [[], ["--json"]], ids=["table", "json"])
def test_a_failed_evaluation_prints_the_reason_and_the_logs(
    sound: Path, evaluation: Evaluation, json_alone: list[str]
) -> None:
    evaluation(TimeoutError("the reward actor did not score"))
    result = cli.invoke(app, ["eval", str(sound), *json_alone])
    assert result.exit_code == 1
    output = result.stderr if json_alone else result.stdout
    assert "stopped: the reward actor did not score" in output
    assert str(sound.parent / "runs" / "sound.eval" / "logs") in output
    assert "Traceback" not in result.output
    assert result.stdout == "" or not json_alone


def test_an_interrupted_evaluation_has_the_exit_code_of_an_interrupt(
    sound: Path, evaluation: Evaluation
) -> None:
    evaluation(KeyboardInterrupt())
    result = cli.invoke(app, ["eval", str(sound)])
    assert result.exit_code == 130
    assert "interrupted" in result.output
    assert "Traceback" not in result.output


def test_an_unknown_split_is_refused(sound: Path) -> None:
    assert cli.invoke(app, ["eval", str(sound), "--split", "test"]).exit_code == 2


def test_a_second_evaluation_is_refused_before_anything_starts(
    sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training of the same name may run meanwhile: its directory is another one."""
    monkeypatch.setattr(
        "cluster.commands.evaluate.run.ray_started", lambda *_: pytest.fail("Ray was started")
    )
    (path,) = lock_paths(sound.parent / "runs" / "sound.eval")
    other = LockFile.take(path)
    before = sorted(sound.parent.rglob("*"))
    result = cli.invoke(app, ["eval", str(sound)])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert "sound.eval is in use by" in line
    assert sorted(sound.parent.rglob("*")) == before
    other.release()
