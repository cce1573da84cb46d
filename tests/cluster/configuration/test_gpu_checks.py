"""Every division of GPUs that cannot work is refused in one line, and every other one is accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.configuration.gpu_checks import check_gpus
from cluster.configuration.preflight import preflight
from cluster.core.config import RunConfig
from tests.cluster.configuration.runs import run_config


def divided(rollout: dict[str, Any], learner: dict[str, Any]) -> RunConfig:
    return run_config(Path(), rollout=rollout, learner=learner)


@pytest.mark.parametrize(
    ("rollout", "learner", "where", "said"),
    [
        (
            {"tensor_parallel_size": 2, "gpus_per_worker": 1},
            {"gpus_per_rank": 1},
            "rollout.gpus_per_worker",
            "tensor_parallel_size = 2 uses 2",
        ),
        (
            {"tensor_parallel_size": 2, "gpus_per_worker": 0.5},
            {"gpus_per_rank": 1},
            "rollout.gpus_per_worker",
            "cannot run on 0.5 of a GPU",
        ),
        ({"gpus_per_worker": 1.5}, {"gpus_per_rank": 1}, "rollout.gpus_per_worker", "gives each engine 1.5"),
        ({"gpus_per_worker": 1}, {"gpus_per_rank": 2}, "learner.gpus_per_rank", "computes on one GPU"),
        (
            {"gpus_per_worker": 1},
            {"gpus_per_rank": 0.5, "ranks": 2},
            "learner.gpus_per_rank",
            "two ranks share a GPU",
        ),
        (
            {"gpus_per_worker": 0.5, "gpu_memory_utilization": 0.85},
            {"gpus_per_rank": 0.5},
            "rollout.gpu_memory_utilization",
            "an engine uses 0.85 of the memory",
        ),
        (
            {"gpus_per_worker": 0.5, "workers": 2, "gpu_memory_utilization": 0.85},
            {"gpus_per_rank": 1},
            "rollout.gpu_memory_utilization",
            "up to 2 engines share a GPU",
        ),
        (
            {"sleep_while_learning": True},
            {},
            "rollout.sleep_while_learning",
            "only engines that share a GPU",
        ),
        (
            {"sleep_while_learning": True, "gpus_per_worker": 1},
            {"gpus_per_rank": 1},
            "rollout.sleep_while_learning",
            "no engine shares a GPU",
        ),
        (
            {"gpus_per_worker": 0.5, "gpu_memory_utilization": 0.4, "weight_transport": "broadcast"},
            {"gpus_per_rank": 0.5},
            "rollout.weight_transport",
            "share a GPU with the learner",
        ),
        (
            {"gpus_per_worker": 1, "weight_transport": "ipc"},
            {"gpus_per_rank": 1},
            "rollout.weight_transport",
            "needs engines that share a GPU with the learner",
        ),
        (
            {"gpus_per_worker": 2, "tensor_parallel_size": 2, "weight_transport": "ipc"},
            {"gpus_per_rank": 0.5},
            "rollout.weight_transport",
            "needs engines that share a GPU with the learner",
        ),
        (
            {
                "gpus_per_worker": 0.4,
                "gpu_memory_utilization": 0.4,
                "workers": 3,
                "weight_transport": "ipc",
            },
            {"gpus_per_rank": 0.6, "ranks": 2},
            "rollout.weight_transport",
            "only 2 of 3 engines fit beside 2 rank(s)",
        ),
    ],
)
def test_a_division_that_cannot_work_is_one_problem(
    rollout: dict[str, Any], learner: dict[str, Any], where: str, said: str
) -> None:
    config = divided(rollout, learner)
    (problem,) = check_gpus(config)
    assert problem.where == where
    assert said in problem.what
    assert problem.fix
    assert problem in preflight(config)


amounts = st.sampled_from([0.0, 0.2, 0.25, 0.3, 0.4, 0.5, 0.51, 0.6, 0.75, 0.9, 1.0, 1.5, 2.0, 4.0])


def can_work(config: RunConfig) -> bool:
    """Return True if no set of actors that Ray may put on one GPU uses it in a way that cannot work."""
    rollout, learner = config.rollout, config.learner
    engine, rank = rollout.gpus_per_worker, learner.gpus_per_rank
    if engine >= 1 and engine != rollout.tensor_parallel_size:
        return False
    if 0 < engine < 1 and rollout.tensor_parallel_size > 1:
        return False
    if rank > 1:
        return False
    together = [
        (ranks, engines)
        for ranks in range(learner.ranks + 1 if rank else 1)
        for engines in range(rollout.workers + 1 if 0 < engine <= 1 else 1)
        if ranks + engines > 1 and ranks * rank + engines * engine <= 1 + 1e-9
    ]
    asleep = rollout.sleep_while_learning
    if asleep and not any(ranks and engines for ranks, engines in together):
        return False
    for ranks, engines in together:
        memory = engines * rollout.gpu_memory_utilization + (ranks * rank if engines and not asleep else 0)
        if ranks > 1 or memory > 1 + 1e-6:
            return False
        if engines and rollout.weight_transport == "broadcast" and not asleep:
            return False
    if rollout.weight_transport == "ipc" and engine and rank:
        beside = [engines for ranks, engines in together if ranks == 1]
        return rollout.workers <= learner.ranks * max(beside, default=0)
    return True


@given(
    engine=amounts,
    rank=amounts,
    size=st.integers(1, 4),
    workers=st.integers(1, 4),
    ranks=st.integers(1, 3),
    utilization=st.sampled_from([0.2, 0.3, 0.4, 0.45, 0.5, 0.6, 0.85, 1.0]),
    sleeps=st.booleans(),
    transport=st.sampled_from(["pull", "broadcast", "ipc"]),
)
def test_exactly_the_divisions_that_can_work_are_accepted(
    engine: float,
    rank: float,
    size: int,
    workers: int,
    ranks: int,
    utilization: float,
    sleeps: bool,
    transport: str,
) -> None:
    """The expectation is computed from every set of actors that fits on one GPU."""
    config = divided(
        {
            "gpus_per_worker": engine,
            "tensor_parallel_size": size,
            "workers": workers,
            "gpu_memory_utilization": utilization,
            "sleep_while_learning": sleeps,
            "weight_transport": transport,
        },
        {"gpus_per_rank": rank, "ranks": ranks},
    )
    problems = list(check_gpus(config))
    assert (problems == []) == can_work(config), [str(problem) for problem in problems]
    for problem in problems:
        assert "\n" not in str(problem)
        assert problem.fix


@pytest.mark.parametrize("gpus", [(0.0, 0.0), (0.4, 0.5)])
@pytest.mark.parametrize(
    ("labels", "apart"),
    [
        ({}, False),
        ({"rollout": {"pool": "a"}}, False),  # the learner may be there too
        ({"rollout": {"pool": "a"}, "learner": {"pool": "a", "disk": "fast"}}, False),
        ({"rollout": {"pool": "a"}, "learner": {"pool": "b"}}, True),
    ],
)
def test_ipc_is_refused_between_nodes(
    labels: dict[str, dict[str, str]], apart: bool, gpus: tuple[float, float]
) -> None:
    rollout = {"weight_transport": "ipc", "gpus_per_worker": gpus[0], "gpu_memory_utilization": 0.4}
    config = run_config(
        Path(), rollout=rollout, learner={"gpus_per_rank": gpus[1]}, cluster={"node_labels": labels}
    )
    problems = list(check_gpus(config))
    assert [problem.where for problem in problems] == (["rollout.weight_transport"] if apart else [])
    assert all("separates learner and engines" in problem.what for problem in problems)
