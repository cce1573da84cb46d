"""Complete runs with everything for rare successes: an adaptive budget, informative selection, prefixes, replays and
examples. All parts are real: Ray, two vLLM workers, a reward actor and a DeepSpeed rank."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.configuration.loading import load_config
from cluster.metrics.catalogue import METRICS
from cluster.run_state.checkpoints import CheckpointStore
from cluster.run_state.run_directory import RunDirectory
from tests.integration.runs import finish, rows_of, start, wait_for_step

pytestmark = pytest.mark.timeout(1200)

PROMPTS, RESPONSES, BUDGET = 8, 2, 32
STEPS = 10


def everything(name: str) -> dict[str, Any]:
    """Return the settings of a run with groups so small that many are all incorrect."""
    return {
        "name": name,
        "steps": STEPS,
        "task": {"selection": "informative"},
        "rollout": {
            "prompts_per_step": PROMPTS,
            "responses_per_prompt": RESPONSES,
            "adaptive_budget": BUDGET,
        },
        "objective": {"importance_cap": 2.0},
        "rescue": {
            "prefix_fraction": 0.5,
            "replay_max_age_steps": STEPS,
            "examples": 1,
            "examples_fraction": 0.5,
            "examples_fade_steps": STEPS,
        },
        "evaluation": {"every_steps": STEPS},
    }


def learned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the seed determines: the prompts, and all metrics but times and processes."""
    free = ("time", "throughput/", "fleet/")
    return [{key: value for key, value in row.items() if not key.startswith(free)} for row in rows]


@pytest.mark.slow
def test_a_killed_run_continues_as_if_nothing_had_happened(write_config: Callable[..., Path]) -> None:
    """Prompts, rewards, losses and gradients are those of an undisturbed run, to the last bit."""
    alone_file = write_config(**everything("alone"))
    alone = load_config(alone_file).config
    finish(start(alone_file), alone)
    undisturbed = rows_of(alone)
    assert set().union(*undisturbed) - {"step", "time", "prompts", "dropped"} <= set(METRICS)
    assert_each_part_has_acted(undisturbed[1:])

    file = write_config(**everything("killed"))
    config = load_config(file).config
    process = start(file)
    wait_for_step(config, 5, process)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    resumed_at = CheckpointStore(RunDirectory(config.run_directory).checkpoints, 1).newest_intact(pytest.fail)
    assert resumed_at is not None
    assert 0 < resumed_at.progress.step < STEPS
    finish(start(file, "--resume"), config)
    assert learned(rows_of(config)) == learned(undisturbed)


def assert_each_part_has_acted(rows: list[dict[str, Any]]) -> None:
    def largest(key: str) -> float:
        return max(row.get(key, 0.0) for row in rows)

    assert PROMPTS * RESPONSES < largest("budget/responses") <= BUDGET
    assert largest("budget/rescued_fraction") > 0
    assert largest("selection/repeated_fraction") > 0
    assert largest("rescue/prefixed_fraction") > 0
    assert largest("rescue/replayed_fraction") > 0
    assert largest("rescue/example_fraction") > 0
    assert rows[-1]["rescue/examples_probability"] < rows[0]["rescue/examples_probability"]
