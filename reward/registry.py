"""The tasks that a configuration can name: each is a file `reward/tasks/NAME/task.py` whose `TASK` is its class."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import reward.tasks
from reward.task import Task


def task_names() -> list[str]:
    return sorted(
        file.parent.name for place in reward.tasks.__path__ for file in Path(place).glob("*/task.py")
    )


def task_class(name: str) -> type[Task]:
    """The class behind a name.

    Raises:
        KeyError: no task has this name.
    """
    if name not in task_names():
        raise KeyError(name)
    kind: type[Task] = import_module(f"reward.tasks.{name}.task").TASK
    return kind


def build_task(name: str, options: Mapping[str, Any]) -> Task:
    """A task ready for use.

    Raises:
        KeyError: no task has this name.
        pydantic.ValidationError: the options are not the task's.
    """
    kind = task_class(name)
    return kind(kind.Options(**options))
