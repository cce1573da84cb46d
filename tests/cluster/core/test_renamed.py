"""Former names are translated to present ones, and other names are left alone."""

from __future__ import annotations

from cluster.configuration.messages import setting_names
from cluster.core.config import RunConfig
from cluster.core.renamed import METRICS, OUTCOMES, SETTINGS, current_row, current_settings
from cluster.metrics.catalogue import METRICS as CATALOGUE
from reward.registry import task_class, task_names


def options() -> set[str]:
    """Return the options of all tasks, as paths of settings."""
    models = [task_class(name).Options for name in task_names()]
    return {f"task.options.{name}" for model in models for name in model.model_fields}


def test_each_former_setting_is_gone_and_its_present_name_exists() -> None:
    known = {*setting_names(RunConfig), *options()}
    assert set(SETTINGS.values()) <= known
    assert not SETTINGS.keys() & known


def test_each_former_metric_is_gone_and_its_present_key_exists() -> None:
    assert set(METRICS.values()) <= CATALOGUE.keys()
    assert not METRICS.keys() & CATALOGUE.keys()
    renamed_twice = {"reward/timeout_fraction"}
    assert len(set(METRICS.values())) == len(METRICS.keys() - renamed_twice)


def test_each_former_outcome_has_a_present_name() -> None:
    assert OUTCOMES == {"right": "correct", "wrong": "incorrect", "timeout": "limit"}


def test_present_names_and_values_stay() -> None:
    config = RunConfig.model_validate({"task": {"options": {"eval_fraction": 0.1}}}).model_dump(mode="json")
    assert current_settings(config) == config
    row = {"step": 3, **dict.fromkeys(CATALOGUE, 0.5), "dropped": {"all correct": ["train/0/1"]}}
    assert current_row(row) == row


def test_only_whole_paths_of_settings_are_renamed() -> None:
    values = {"name": "kl_weight", "task": {"options": {"kl_weight": 1}}, "objective": {"kl_weight": 2}}
    assert current_settings(values) == {
        "name": "kl_weight",
        "task": {"options": {"kl_weight": 1}},
        "objective": {"kl_coefficient": 2},
    }
