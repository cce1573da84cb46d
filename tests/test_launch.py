"""The output and the exit codes of the command line. No test here trains a model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cluster.commands import options
from cluster.commands.check import arithmetic
from cluster.core.config import RunConfig
from cluster.core.project import code_version
from cluster.core.types import Split
from cluster.metrics.evaluation import evaluation_report
from cluster.run_state.checkpoints import CheckpointStore, learner_state
from cluster.run_state.run_directory import RunDirectory
from cluster.tracking import RunConsole
from launch import COMMANDS, app
from learner.state.state_description import StateDescription
from reward.registry import task_names
from tests import PROJECT
from tests.builders import make_group, make_progress

cli = CliRunner()


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """Write a valid configuration that fits on any machine."""
    file = tmp_path / "sound.yaml"
    values = {
        "name": "sound",
        "directory": str(tmp_path / "runs"),
        "model": {"max_context_tokens": 128},
        "rollout": {"workers": 1, "prompts_per_step": 4, "max_response_tokens": 64, "cpus_per_worker": 0.3},
        "learner": {"cpus_per_rank": 0.3},
        "reward": {"cpus_per_worker": 0.3},
    }
    file.write_text(yaml.safe_dump(values))
    return file


def python_launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "launch.py", *arguments],
        cwd=PROJECT,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )


# --- check


def test_check_prints_the_batch_sizes_of_a_valid_run(sound: Path) -> None:
    process = python_launch("check", str(sound))
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert process.stdout.startswith(f"{sound}: ok. ")
    assert "4 prompts × 16 responses = 64 responses" in process.stdout
    assert len(process.stdout.splitlines()) == 1


def test_five_mistakes_are_five_lines(sound: Path) -> None:
    """Two mistakes are in the file, two in the overrides, and one depends on the machine."""
    text = sound.read_text().replace("learner:\n", "learner:\n  learning_rat: 1.0e-3\n  temperature: 0.5\n")
    sound.write_text(text)
    mistakes = ["objective.alpha_min=2", "learner.mini_batches=3", "model.source=./nowhere"]
    process = python_launch("check", str(sound), *mistakes)
    assert process.returncode == 2
    assert process.stdout == ""
    lines = process.stderr.splitlines()
    assert len(lines) == 5, process.stderr
    for where, fix in {
        "learner.learning_rat": "did you mean learning_rate?",
        "learner.temperature": "rollout.temperature",
        "objective.alpha_min": "less than or equal to 1",
        "rollout.prompts_per_step": "take a multiple of 3",
        "model.source": "starter",
    }.items():
        (line,) = (line for line in lines if line.startswith(f"{where}: "))
        assert fix in line
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("content", [None, "a: [1", "- a list"], ids=["not there", "not YAML", "no mapping"])
def test_a_file_that_cannot_be_read_is_one_line(
    sound: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    """The resources of a small machine are not reported, because the file states no needs."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if content is None:
        sound.unlink()
    else:
        sound.write_text(content)
    result = cli.invoke(app, ["check", str(sound)])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert str(sound) in result.stderr


def test_an_error_line_is_printed_without_formatting(sound: Path) -> None:
    """There is no markup, emoji or wrapping, so that a user can copy the line."""
    source = f"./[bold]{'x' * 200}:smile:[/nowhere]"
    result = cli.invoke(app, ["check", str(sound), f"model.source={source}"])
    (line,) = result.stderr.splitlines()
    assert source in line


def test_check_writes_no_files(sound: Path) -> None:
    before = sorted(sound.parent.rglob("*"))
    assert cli.invoke(app, ["check", str(sound)]).exit_code == 0
    assert sorted(sound.parent.rglob("*")) == before


def test_with_an_address_the_resources_of_this_machine_do_not_matter(sound: Path) -> None:
    assert cli.invoke(app, ["check", str(sound), "rollout.workers=1000"]).exit_code == 2
    assert (
        cli.invoke(app, ["check", str(sound), "rollout.workers=1000", "--address", "head:6379"]).exit_code
        == 0
    )


def test_the_batch_sizes_are_one_sentence() -> None:
    config = RunConfig.model_validate(
        {
            "steps": 7,
            "rollout": {"prompts_per_step": 6, "responses_per_prompt": 5},
            "learner": {"mini_batches": 3},
        }
    )
    assert arithmetic(config).startswith(
        "7 steps of 6 prompts × 5 responses = 30 responses, in 3 optimizer step(s)"
    )


# --- train


Training = Callable[[BaseException | None], list[RunConfig]]


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Training:
    """Replace the training by a function that succeeds, or raises `error`. It returns the started runs."""

    def stand_in(error: BaseException | None) -> list[RunConfig]:
        started: list[RunConfig] = []

        def train(config: RunConfig, _console: object) -> None:
            started.append(config)
            if error:
                raise error

        monkeypatch.setattr("cluster.commands.train.run.run_training", train)
        return started

    return stand_in


def finished(sound: Path) -> RunDirectory:
    directory = RunDirectory(sound.parent / "runs" / "sound")
    directory.create()
    directory.write_summary({"pass_at_1_before": 0.125, "pass_at_1_after": 0.875})
    return directory


def test_train_starts_the_configured_run(sound: Path, training: Training) -> None:
    started = training(None)
    result = cli.invoke(app, ["train", str(sound), "seed=3", "--address", "head:6379"])
    assert result.exit_code == 0, result.output
    (config,) = started
    assert (config.name, config.seed, config.cluster.address) == ("sound", 3, "head:6379")


def test_train_refuses_what_check_refuses(sound: Path, training: Training) -> None:
    started = training(None)
    checked = cli.invoke(app, ["check", str(sound), "steps=0", "seed=-1"])
    trained = cli.invoke(app, ["train", str(sound), "steps=0", "seed=-1"])
    assert (trained.exit_code, trained.stderr) == (checked.exit_code, checked.stderr)
    assert trained.exit_code == 2
    assert len(trained.stderr.splitlines()) == 2
    assert started == []


def test_an_interrupted_run_says_how_to_resume(sound: Path, training: Training) -> None:
    training(KeyboardInterrupt())
    result = cli.invoke(app, ["train", str(sound)])
    assert result.exit_code == 130
    assert "the same command resumes from the last checkpoint" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "error", [TimeoutError("learner rank(s) [1] did not finish"), OSError("No space left")]
)
def test_a_failed_run_prints_the_reason_and_the_logs(
    sound: Path, training: Training, error: Exception
) -> None:
    training(error)
    result = cli.invoke(app, ["train", str(sound)])
    assert result.exit_code == 1
    assert f"stopped: {error}" in result.output
    assert str(sound.parent / "runs" / "sound" / "logs") in result.output
    assert "Traceback" not in result.output


def test_quiet_does_not_hide_a_failure(sound: Path, training: Training) -> None:
    training(TimeoutError("learner rank(s) [1] did not finish"))
    result = cli.invoke(app, ["train", str(sound), "--quiet"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "stopped: learner rank(s) [1] did not finish" in result.stderr
    assert str(sound.parent / "runs" / "sound" / "logs") in result.stderr


def test_a_bug_keeps_its_traceback(sound: Path, training: Training) -> None:
    training(AssertionError("a bug"))
    result = cli.invoke(app, ["train", str(sound)])
    assert isinstance(result.exception, AssertionError)


def test_a_finished_run_prints_its_summary_and_does_not_start(sound: Path, training: Training) -> None:
    started = training(None)
    finished(sound)
    result = cli.invoke(app, ["train", str(sound)])
    assert result.exit_code == 0
    assert "this run is finished" in result.output
    assert "87.5" in result.output or "0.875" in result.output
    assert started == []


def test_fresh_moves_the_complete_earlier_run_aside(sound: Path, training: Training) -> None:
    started = training(None)
    earlier = finished(sound)
    result = cli.invoke(app, ["train", str(sound), "--fresh"])
    assert result.exit_code == 0, result.output
    assert len(started) == 1
    (aside,) = earlier.path.parent.iterdir()
    assert aside != earlier.path
    assert str(aside) in result.output
    assert RunDirectory(aside).read_summary()["pass_at_1_after"] == 0.875


def test_runs_moved_aside_within_a_second_are_all_kept(
    sound: Path, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedClock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime(2030, 1, 2, 3, 4, 5)

    training(None)
    monkeypatch.setattr("cluster.commands.train.run.datetime", StoppedClock)
    for attempt in range(4):
        earlier = finished(sound)
        earlier.write_summary({"attempt": attempt})
        assert cli.invoke(app, ["train", str(sound), "--fresh"]).exit_code == 0
    kept = [RunDirectory(path).read_summary()["attempt"] for path in earlier.path.parent.iterdir()]
    assert sorted(kept) == [0, 1, 2, 3]


def test_resume_continues_an_earlier_run(sound: Path, training: Training) -> None:
    started = training(None)
    earlier = RunDirectory(sound.parent / "runs" / "sound")
    earlier.create()
    earlier.write_config(RunConfig())
    result = cli.invoke(app, ["train", str(sound), "--resume"])
    assert result.exit_code == 0, result.output
    assert len(started) == 1


def test_resume_does_not_start_a_new_run(sound: Path, training: Training) -> None:
    started = training(None)
    result = cli.invoke(app, ["train", str(sound), "--resume"])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert f"{sound.parent / 'runs' / 'sound'}: no run to resume" in line
    assert started == []
    assert not (sound.parent / "runs").exists()


def test_resume_and_fresh_cannot_be_combined(sound: Path, training: Training) -> None:
    started = training(None)
    earlier = finished(sound)
    result = cli.invoke(app, ["train", str(sound), "--resume", "--fresh"])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert started == []
    assert earlier.is_finished


def test_an_interrupted_fresh_run_advises_to_resume(sound: Path, training: Training) -> None:
    training(KeyboardInterrupt())
    result = cli.invoke(app, ["train", str(sound), "--fresh"])
    assert result.exit_code == 130
    assert "--resume in place of --fresh resumes from the last checkpoint" in result.output


@pytest.mark.parametrize(
    ("settings", "damage", "said"),
    [
        (["model.dtype=bfloat16"], None, "its weights are float32, and model.dtype is bfloat16: set it back"),
        (["learner.zero_stage=3"], None, "learner.zero_stage 2 and cannot be read with 3"),
        ([], ("COMPLETE", '{"format": 3, "files": {}}'), "format 3 by another version of this program"),
        ([], ("progress.json", "{"), "no undamaged checkpoint is left"),
    ],
)
def test_an_unusable_checkpoint_is_one_line_and_stays_unchanged(
    sound: Path, settings: list[str], damage: tuple[str, str] | None, said: str
) -> None:
    """Nothing is patched here, because the run is refused before anything starts."""
    run = RunDirectory(sound.parent / "runs" / "sound")
    run.create()
    run.write_config(RunConfig())
    store = CheckpointStore(run.checkpoints, keep=2)
    path = store.begin(50)
    learner_state(path).mkdir()
    description = StateDescription("LlamaForCausalLM", "float32", 2, 2, {}).to_json()
    (learner_state(path) / "description.json").write_text(description)
    store.commit(path, make_progress(50))
    if damage:
        (path / damage[0]).write_text(damage[1])
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}

    result = cli.invoke(app, ["train", str(sound), *settings])
    assert result.exit_code == 1
    stopped = " ".join(result.output.partition("stopped: ")[2].split())
    assert str(path) in stopped.replace(" ", "")
    assert said in stopped
    assert "Traceback" not in result.output
    assert {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()} == before


def test_quiet_prints_nothing_while_a_run_succeeds(sound: Path, training: Training) -> None:
    training(None)
    assert cli.invoke(app, ["train", str(sound), "--quiet"]).output == ""


# --- eval


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


# --- export (what it refuses: tests/cluster/commands/export/test_plan.py)


def test_export_refuses_with_one_line(tmp_path: Path) -> None:
    result = cli.invoke(app, ["export", str(tmp_path / "nowhere"), str(tmp_path / "here")])
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert f"{tmp_path / 'nowhere'}: this is not a run directory" in line


# --- the rest


def test_tasks_are_listed_with_a_prompt_a_correct_and_an_incorrect_answer() -> None:
    result = cli.invoke(app, ["tasks"])
    assert result.exit_code == 0
    lines = iter(result.output.splitlines())
    for name in task_names():
        listed = next(lines)
        assert listed.startswith(f"{name}: ")
        example = next(lines)
        assert example.startswith("  for example: ")
        assert len(example) < 500
        assert next(lines).startswith("  correct: ")
        assert next(lines).startswith("  incorrect: ")
    assert list(lines) == []


def test_without_a_command_the_help_names_all_of_them() -> None:
    result = cli.invoke(app, [])
    for command in ("train", "eval", "export", "scale", "check", "tasks"):
        assert command in result.output
    assert "Train, evaluate and operate HPO/GRPO runs on Ray." in result.output


def test_each_command_is_a_module_that_registers_itself() -> None:
    folder = PROJECT / "cluster" / "commands"
    modules = {
        file for file in folder.rglob("*.py") if "\ndef register(app: typer.Typer)" in file.read_text()
    }
    assert {Path(command.__file__ or "") for command in COMMANDS} == modules
    assert len((PROJECT / "launch.py").read_text().splitlines()) < 80


def test_every_command_is_in_a_panel_of_the_help_page_and_has_an_example() -> None:
    registered = app.registered_commands
    panels = {getattr(options, name) for name in dir(options) if name.endswith("_PANEL")}
    assert {command.rich_help_panel for command in registered} == panels
    for command in registered:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        if name != "tasks":  # it takes no arguments
            assert f"Examples:\n      python launch.py {name}" in (command.callback.__doc__ or "")


def test_the_version_is_that_of_the_package_and_the_commit() -> None:
    result = cli.invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"{code_version()}\n")


def test_the_shell_can_complete_commands() -> None:
    environment = {"_HPO_COMPLETE": "complete_bash", "COMP_WORDS": "hpo tr", "COMP_CWORD": "1"}
    result = cli.invoke(app, [], prog_name="hpo", env=environment)
    assert result.output.split() == ["train"]
