"""Shared fixtures of the integration tests: Ray, a tiny model that solves some puzzles, and a configuration that trains
it in seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from cluster.core.config import ClusterConfig
from cluster.runtime.connect import connect
from learner.model.supervised import train_starter
from reward.tasks.countdown.starter import ANSWER_TAGS, COMPACT_CHARACTERS, warmup_examples
from reward.tasks.countdown.task import CountdownOptions, CountdownTask

TASK_OPTIONS = {"numbers": 2, "number_max": 6, "target_max": 40, "eval_fraction": 0.3}


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """Start Ray on this machine, as a run does, for all tests of a module."""
    connect(ClusterConfig())
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a tiny model whose answers are correct in part, so that rewards differ within groups."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    puzzles = CountdownTask(CountdownOptions(**TASK_OPTIONS)).problems("train")
    train_starter(
        warmup_examples(puzzles, 2000, 0, correct_fraction=0.4, eval_fraction=TASK_OPTIONS["eval_fraction"]),
        directory,
        characters=COMPACT_CHARACTERS,
        added_tokens=ANSWER_TAGS,
        hidden_size=64,
        heads=2,
        layers=2,
        max_tokens=64,
        steps=120,
        batch_size=64,
    )
    return directory


@pytest.fixture
def write_config(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a configuration for the tiny model.

    Its arguments, such as `rollout={"workers": 1}`, change settings.
    """

    def write(**changes: Any) -> Path:
        values: dict[str, Any] = {
            "name": "tiny",
            "directory": str(tmp_path / "runs"),
            "steps": 4,
            "model": {"source": str(tiny_model), "max_context_tokens": 64},
            "task": {"name": "countdown", "options": TASK_OPTIONS},
            "rollout": {
                "workers": 2,
                "prompts_per_step": 8,
                "responses_per_prompt": 8,
                "max_response_tokens": 24,
                "prompts_per_request": 2,
                "max_sequences": 64,
                "cpus_per_worker": 0.5,
                "kv_cache_gib": 0.125,
            },
            "learner": {"learning_rate": 1e-3, "cpus_per_rank": 0.25},
            "reward": {"cpus_per_worker": 0.25},
            "evaluation": {"every_steps": 2, "prompts": 8, "responses_per_prompt": 2},
            "checkpoint": {"every_steps": 2},
            "tracking": {"wandb": "disabled"},
        }
        for section, change in changes.items():
            values[section] = values.get(section, {}) | change if isinstance(change, dict) else change
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write
