"""Valid configurations of small runs, and the problems of changed ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.configuration.preflight import preflight
from cluster.core.config import RunConfig
from cluster.core.problem import Problem


def run_config(directory: Path, **sections: Any) -> RunConfig:
    """Return a small valid run with changes such as `rollout={"workers": 9}` or `steps=3`."""
    values: dict[str, Any] = {
        "directory": str(directory),
        "model": {"max_context_tokens": 128},
        "rollout": {"workers": 1, "prompts_per_step": 4, "max_response_tokens": 64},
    }
    for name, change in sections.items():
        values[name] = {**values.get(name, {}), **change} if isinstance(change, dict) else change
    return RunConfig.model_validate(values)


def only_problem(config: RunConfig) -> Problem:
    """Return the problem of a run that must have exactly one."""
    problems = preflight(config)
    assert len(problems) == 1, "\n".join(map(str, problems))
    return problems[0]
