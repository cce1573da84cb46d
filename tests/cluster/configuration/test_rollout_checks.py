"""Rollout settings that contradict each other or the learner are reported."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from cluster.configuration.preflight import preflight
from cluster.core.weight_transport import WEIGHT_TRANSPORTS
from tests.cluster.configuration.runs import only_problem, run_config


@pytest.mark.parametrize(("workers", "valid"), [(1, False), (2, True), (3, True), (4, False)])
def test_an_automatically_scaled_fleet_starts_within_its_limits(
    tmp_path: Path, workers: int, valid: bool
) -> None:
    rollout = {"workers": workers, "min_workers": 2, "max_workers": 3, "cpus_per_worker": 0.1}
    problems = preflight(run_config(tmp_path, rollout=rollout))
    assert [problem.where for problem in problems] == ([] if valid else ["rollout.workers"])


@pytest.mark.parametrize(("oversampling", "valid"), [(1.0, True), (1.25, True), (2.0, True), (2.25, False)])
def test_prompts_in_flight_are_bounded_by_staleness(tmp_path: Path, oversampling: float, valid: bool) -> None:
    rollout = {"max_staleness": 1, "oversampling": oversampling}
    problems = preflight(run_config(tmp_path, rollout=rollout))
    assert [problem.where for problem in problems] == ([] if valid else ["rollout.oversampling"])


@pytest.mark.parametrize(
    ("gpus", "valid"),
    [
        ((0.0, 0.0), ("pull", "broadcast", "ipc")),
        ((1.0, 1.0), ("pull", "broadcast")),
        ((0.4, 0.5), ("pull", "ipc")),
        ((0.0, 1.0), ("pull",)),
        ((1.0, 0.0), ("pull",)),
    ],
)
@pytest.mark.parametrize("transport", WEIGHT_TRANSPORTS)
def test_a_transport_is_refused_on_devices_that_it_does_not_connect(
    tmp_path: Path, transport: str, gpus: tuple[float, float], valid: Collection[str]
) -> None:
    rollout = {"weight_transport": transport, "gpus_per_worker": gpus[0], "gpu_memory_utilization": 0.4}
    problems = preflight(run_config(tmp_path, rollout=rollout, learner={"gpus_per_rank": gpus[1]}))
    found = [problem.where for problem in problems if problem.where != "cluster"]  # here are no GPUs
    assert found == ([] if transport in valid else ["rollout.weight_transport"])


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("broadcst", "did you mean broadcast? (known weight transports: pull, broadcast, ipc)"),
        ("carrier-pigeon", "choose one of the known weight transports: pull, broadcast, ipc"),
    ],
)
def test_an_unknown_weight_transport_is_answered_with_the_known_ones(
    tmp_path: Path, name: str, fix: str
) -> None:
    problem = only_problem(run_config(tmp_path, rollout={"weight_transport": name}))
    assert (problem.where, problem.fix) == ("rollout.weight_transport", fix)


@pytest.mark.parametrize(
    ("rollout", "valid"),
    [
        ({}, True),
        ({"weight_transport": "ipc"}, True),
        ({"max_staleness": 1}, False),
        ({"weight_transport": "broadcast"}, False),
    ],
)
def test_engines_sleep_only_while_they_are_not_needed(
    tmp_path: Path, rollout: dict[str, Any], valid: bool
) -> None:
    shared = {"sleep_while_learning": True, "gpus_per_worker": 0.5}
    config = run_config(tmp_path, rollout=rollout | shared, learner={"gpus_per_rank": 0.5})
    problems = [problem for problem in preflight(config) if problem.where != "cluster"]  # here are no GPUs
    assert [problem.where for problem in problems] == ([] if valid else ["rollout.sleep_while_learning"])


@pytest.mark.parametrize(("timeout_s", "valid"), [(59.0, True), (60.0, False)])
def test_a_response_is_truncated_before_its_worker_is_replaced(
    tmp_path: Path, timeout_s: float, valid: bool
) -> None:
    rollout = {"response_timeout_s": timeout_s, "request_timeout_s": 60.0}
    problems = preflight(run_config(tmp_path, rollout=rollout))
    assert [problem.where for problem in problems] == ([] if valid else ["rollout.response_timeout_s"])


@pytest.mark.parametrize(
    ("prompts", "mini_batches", "valid"), [(4, 3, False), (4, 8, False), (4, 2, True), (6, 3, True)]
)
def test_a_batch_is_divisible_into_mini_batches(
    tmp_path: Path, prompts: int, mini_batches: int, valid: bool
) -> None:
    config = run_config(
        tmp_path, rollout={"prompts_per_step": prompts}, learner={"mini_batches": mini_batches}
    )
    if valid:
        assert preflight(config) == []
    else:
        assert only_problem(config).where == "rollout.prompts_per_step"


@pytest.mark.parametrize(
    ("budget", "valid"), [(1, False), (31, False), (32, True), (500, True), (None, True)]
)
def test_a_budget_covers_the_first_responses_of_a_batch(
    tmp_path: Path, budget: int | None, valid: bool
) -> None:
    rollout = {"prompts_per_step": 4, "responses_per_prompt": 8, "adaptive_budget": budget}
    config = run_config(tmp_path, rollout=rollout)
    if valid:
        assert preflight(config) == []
        return
    problem = only_problem(config)
    assert problem.where == "rollout.adaptive_budget"
    assert problem.what.startswith(f"{budget} responses are fewer")
    assert "set it to 32 or more" in problem.fix


def test_a_response_longer_than_the_context_is_refused(tmp_path: Path) -> None:
    config = run_config(tmp_path, rollout={"max_response_tokens": 128})
    assert "rollout.max_response_tokens" in [problem.where for problem in preflight(config)]
