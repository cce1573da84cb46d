"""The output and the exit codes of the command line. No test here trains a model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.commands import options
from cluster.commands.check import arithmetic
from cluster.core.config import RunConfig
from cluster.core.project import code_version
from launch import COMMANDS, app
from reward.registry import task_names
from tests import PROJECT

cli = CliRunner()


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
    _, memory = process.stdout.splitlines()
    assert memory == "memory: not estimated for starter, because the starter model is not built yet"


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
    rollout = config.rollout.model_copy(update={"adaptive_budget": 40})
    assert "= 30 responses (up to 40), in" in arithmetic(config.model_copy(update={"rollout": rollout}))


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
