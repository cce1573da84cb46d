"""Every number in the schema, with extreme values: it is refused in one line, or the run can be checked with it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from cluster.commands.compare.comparison_file import ComparisonConfig
from cluster.configuration.loading import validate
from cluster.configuration.preflight import preflight
from cluster.core.config import RunConfig, ShapingConfig
from cluster.core.problem import Problem
from reward.registry import task_class, task_names

IMPOSSIBLE = [math.inf, -math.inf, math.nan, 1e20, 10**20, -(10**20)]
POSSIBLE = [0, -1]


def numbers(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the path of every number in a schema."""
    for name, field in schema.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        for section in sections:
            yield from numbers(section, f"{prefix}{name}.")
        if not sections and any(kind in (int, float) for kind in flattened(field.annotation)):
            yield f"{prefix}{name}"


def flattened(annotation: Any) -> Iterator[Any]:
    """Yield the types in an annotation such as `Annotated[int, …] | None`."""
    yield annotation
    for part in get_args(annotation):
        yield from flattened(part)


def nested(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return dict(value)


def assert_named(problems: list[Problem], path: str) -> None:
    assert [problem.where for problem in problems] == [path]
    assert "\n" not in str(problems[0])


# A shaping reward is an entry of a list, and has a test of its own.
RUN_NUMBERS = [path for path in numbers(RunConfig) if not path.startswith("reward.shaping.")]
COMPARISON_NUMBERS = [*numbers(ComparisonConfig)]
TASK_NUMBERS = [(task, path) for task in task_names() for path in numbers(task_class(task).Options)]


def test_the_schema_has_numbers() -> None:
    assert {"seed", "learner.learning_rate", "rollout.workers"} <= set(RUN_NUMBERS)
    assert len(RUN_NUMBERS) > 50
    assert set(COMPARISON_NUMBERS) == {"seeds", "tuning.seeds", "tuning.values"}
    assert {task for task, _ in TASK_NUMBERS} == set(task_names())


@pytest.mark.parametrize("path", RUN_NUMBERS)
def test_an_impossible_number_is_refused_by_its_name(path: str) -> None:
    for value in IMPOSSIBLE:
        _, problems = validate(RunConfig, nested(path, value))
        assert_named(problems, path)


@pytest.mark.parametrize(("task", "path"), TASK_NUMBERS)
def test_an_impossible_number_of_a_task_is_refused_by_its_name(task: str, path: str) -> None:
    for value in IMPOSSIBLE:
        _, problems = validate(task_class(task).Options, nested(path, value), "task.options")
        assert_named(problems, f"task.options.{path}")


@pytest.mark.parametrize("weight", IMPOSSIBLE)
def test_an_impossible_weight_of_a_shaping_reward_is_refused(weight: float) -> None:
    values = {"reward": {"shaping": [{"function": "module:function", "weight": weight}]}}
    _, problems = validate(RunConfig, values)
    assert_named(problems, "reward.shaping.0.weight")
    assert "weight" in ShapingConfig.model_fields


@pytest.mark.parametrize("weight", POSSIBLE)
def test_a_shaping_reward_may_have_any_other_weight(weight: float) -> None:
    values = {"reward": {"shaping": [{"function": "module:function", "weight": weight}]}}
    config, problems = validate(RunConfig, values)
    assert not problems
    assert config.reward.shaping[0].weight == weight


@pytest.mark.parametrize("path", COMPARISON_NUMBERS)
def test_an_impossible_number_of_a_comparison_is_refused_by_its_name(path: str) -> None:
    for value in IMPOSSIBLE:
        _, problems = validate(ComparisonConfig, nested(path, [7, value]))
        assert_named(problems, f"{path}.1")


@pytest.mark.parametrize("path", RUN_NUMBERS)
def test_small_numbers_are_refused_or_can_be_checked(path: str, tmp_path: Path) -> None:
    for value in POSSIBLE:
        config, problems = validate(RunConfig, {"directory": str(tmp_path), **nested(path, value)})
        if problems:
            assert_named(problems, path)
        else:
            assert all("\n" not in str(problem) for problem in preflight(config))


@pytest.mark.parametrize(("task", "path"), TASK_NUMBERS)
def test_small_numbers_of_a_task_are_refused_or_can_be_checked(task: str, path: str, tmp_path: Path) -> None:
    few = {
        name: 4
        for name in ("train_problems", "eval_problems")
        if name in task_class(task).Options.model_fields
    }
    for value in POSSIBLE:
        options = {**few, **nested(path, value)}
        values = {"directory": str(tmp_path), "task": {"name": task, "options": options}}
        config, problems = validate(RunConfig, values)
        assert not problems
        assert all("\n" not in str(problem) for problem in preflight(config))
