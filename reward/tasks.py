"""The tasks that a configuration can name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from reward.task import Task

_TASKS = {
    "countdown": "reward.countdown.task:CountdownTask",
    "http": "reward.http.task:HttpTask",
    "math": "reward.math.task:MathTask",
    "python": "reward.python.task:PythonTask",
    "telelogs": "reward.telelogs.task:TeleLogsTask",
}


def task_names() -> list[str]:
    return sorted(_TASKS)


def task_class(name: str) -> type[Task]:
    """The class behind a name.

    Raises:
        KeyError: no task has this name.
    """
    module, _, attribute = _TASKS[name].partition(":")
    return getattr(import_module(module), attribute)


def build_task(name: str, options: Mapping[str, Any]) -> Task:
    """A task ready for use.

    Raises:
        KeyError: no task has this name.
        pydantic.ValidationError: the options are not the task's.
    """
    kind = task_class(name)
    return kind(kind.Options(**options))
