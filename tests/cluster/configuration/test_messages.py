"""Former names and names of other trainers are answered with the setting to use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.configuration.loading import load_config, validate
from cluster.configuration.messages import setting_names
from cluster.core.config import RunConfig
from cluster.core.problem import Problem
from cluster.core.renamed import FOREIGN_NAMES, SETTINGS, ForeignName
from reward.registry import task_class, task_names

EARLIER_CONFIG = Path(__file__).parents[1] / "run_state" / "earlier_run" / "config.yaml"
KNOWN = set(setting_names(RunConfig))
OPTIONS = {
    f"task.options.{option}" for task in task_names() for option in task_class(task).Options.model_fields
}


def problems(tmp_path: Path, values: dict[str, Any], *overrides: str) -> dict[str, Problem]:
    """Return the problems of a configuration file with these values, by their place."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return {problem.where: problem for problem in load_config(file, overrides).problems}


def nested(path: str, value: Any = 1) -> dict[str, Any]:
    """Return a configuration that sets only the setting at this path."""
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


def test_each_entry_points_to_a_setting() -> None:
    assert {entry.setting for entry in FOREIGN_NAMES} <= KNOWN | OPTIONS
    assert not {entry.name for entry in FOREIGN_NAMES} & KNOWN
    assert len({(entry.system, entry.name) for entry in FOREIGN_NAMES}) == len(FOREIGN_NAMES)


@pytest.mark.parametrize("entry", FOREIGN_NAMES, ids=lambda entry: f"{entry.system}:{entry.name}")
def test_each_foreign_name_is_answered_with_the_setting(tmp_path: Path, entry: ForeignName) -> None:
    """The answer is the same in a file and on the command line."""
    in_file = problems(tmp_path, nested(entry.name))
    assert in_file == problems(tmp_path, {}, f"{entry.name}=1")
    (problem,) = in_file.values()
    assert problem.where == entry.name
    assert f"{entry.system}'s" in problem.what
    assert entry.setting in problem.fix
    assert entry.note in problem.fix


@pytest.mark.parametrize(("former", "present"), SETTINGS.items())
def test_each_former_setting_is_answered_with_its_present_name(
    tmp_path: Path, former: str, present: str
) -> None:
    expected = Problem(former, "was renamed", f"use {present}")
    if not former.startswith("task.options."):
        assert problems(tmp_path, nested(former)) == {former: expected}
        assert problems(tmp_path, {}, f"{former}=1") == {former: expected}
        return
    option = present.rpartition(".")[2]
    kind = next(
        task_class(name).Options
        for name in task_names()
        if f"{option}" in task_class(name).Options.model_fields
    )
    assert expected in validate(kind, {former.rpartition(".")[2]: 1}, "task.options")[1]


@pytest.mark.parametrize("path", ["kl_weight", "learner.kl_weight", "objective.kl_weight"])
def test_a_former_name_is_recognized_in_any_section(tmp_path: Path, path: str) -> None:
    assert problems(tmp_path, nested(path))[path].fix == "use objective.kl_coefficient"


@pytest.mark.parametrize(
    ("path", "setting"),
    [
        ("lr", "learner.learning_rate"),
        ("learner.lr", "learner.learning_rate"),
        ("rollout.n", "rollout.responses_per_prompt"),
        ("rollout.num_generations", "rollout.responses_per_prompt"),
        ("total_epochs", "steps"),
        ("trainer.total_epochs", "steps"),
        ("train_batch_size", "rollout.prompts_per_step (for verl) or learner.mini_batches (for OpenRLHF: "),
        ("data.train_batch_size", "rollout.prompts_per_step"),
    ],
)
def test_a_foreign_name_is_recognized_at_any_depth(tmp_path: Path, path: str, setting: str) -> None:
    assert problems(tmp_path, nested(path))[path].fix.startswith(f"use {setting}")


def test_each_setting_of_a_foreign_section_has_its_own_line(tmp_path: Path) -> None:
    found = problems(tmp_path, {"trainer": {"total_epochs": 3, "unknown": 1, "logger": ["wandb"]}})
    assert {where: problem.fix.split(" (")[0] for where, problem in found.items()} == {
        "trainer.total_epochs": "use steps",
        "trainer.unknown": "remove it",
        "trainer.logger": "use tracking.wandb",
    }


def test_a_foreign_name_is_not_answered_with_an_option_that_the_task_lacks() -> None:
    countdown, math = task_class("countdown").Options, task_class("math").Options
    assert validate(math, {"input_key": "x"}, "task.options")[1][0].fix == "use task.options.prompt_field"
    assert validate(countdown, {"input_key": "x"}, "task.options")[1][0].fix.startswith("known here: ")


def test_every_setting_of_version_0_1_0_is_a_setting_or_has_a_present_name() -> None:
    """The fixture is the complete configuration of a run of that version."""

    def paths(values: dict[str, Any], prefix: str = "") -> set[str]:
        return {
            path
            for key, value in values.items()
            for path in (
                paths(value, f"{prefix}{key}.")
                if isinstance(value, dict) and f"{prefix}{key}" not in KNOWN
                else {f"{prefix}{key}"}
            )
        }

    former = paths(yaml.safe_load(EARLIER_CONFIG.read_text()))
    assert len(former) == 99
    assert former <= KNOWN | SETTINGS.keys()


def test_the_configuration_of_a_run_of_version_0_1_0_is_refused_with_one_line_per_former_name() -> None:
    found = load_config(EARLIER_CONFIG).problems
    assert {problem.where for problem in found} == {
        name for name in SETTINGS if not name.startswith("task.options.")
    }
    assert {problem.what for problem in found} == {"was renamed"}
