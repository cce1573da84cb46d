"""A run that fits has no problem; otherwise the actors without resources are named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.config import RunConfig
from cluster.runtime.capacity import Need, Node, has_labels, needs_of, shortfalls


def node(name: str, cpus: float = 4, gpus: float = 0, **labels: str) -> Node:
    return Node(name, {"CPU": cpus, "GPU": gpus}, labels)


def config(**sections: Any) -> RunConfig:
    return RunConfig.model_validate(sections)


def test_a_run_that_fits_has_no_problem() -> None:
    assert list(shortfalls(needs_of(config()), [node("a")])) == []


def test_actors_that_do_not_fit_are_named_with_the_existing_resources() -> None:
    needs = needs_of(config(rollout={"workers": 5, "gpus_per_worker": 1}))
    (problem,) = shortfalls(needs, [node("a", 4, 2), node("b", 4, 1)])
    assert problem.where == "rollout.workers"
    assert "resources for 3 of 5 rollout workers of 1 CPU, 1 GPU each" in problem.what
    assert "b: 4 CPU, 1 GPU" in problem.what


def test_an_actor_needs_its_resources_on_one_node() -> None:
    """The totals of the cluster are not sufficient."""
    needs = needs_of(config(learner={"cpus_per_rank": 6}, rollout={"workers": 1}))
    (problem,) = shortfalls(needs, [node("a", 4), node("b", 4)])
    assert problem.where == "learner.ranks"


def test_missing_labels_are_named_with_the_existing_ones() -> None:
    needs = needs_of(config(cluster={"node_labels": {"learner": {"pool": "reserved"}}}))
    (problem,) = shortfalls(needs, [node("a", pool="spot"), node("b", zone="1")])
    assert problem.where == "cluster.node_labels.learner"
    assert "pool=reserved (existing labels: pool=spot, zone=1)" in problem.what
    assert "--labels pool=reserved" in problem.fix


def test_nodes_without_the_labels_do_not_count() -> None:
    needs = needs_of(config(cluster={"node_labels": {"rollout": {"pool": "spot"}}}, rollout={"workers": 3}))
    (problem,) = shortfalls(needs, [node("a", 64), node("b", 2, pool="spot")])
    assert "2 of 3 rollout workers" in problem.what


def test_actors_without_labels_leave_the_labeled_nodes_to_others() -> None:
    needs = needs_of(
        config(
            rollout={"workers": 2}, reward={"cpus_per_worker": 2}, cluster={"node_labels": {"rollout": {"pool": "s"}}}
        )
    )  # fmt: skip
    assert list(shortfalls(needs, [node("a", 2, pool="s"), node("b", 3)])) == []


def test_several_nodes_on_one_machine_are_counted_separately() -> None:
    assert list(shortfalls(needs_of(config(rollout={"workers": 2})), [node("a", 2), node("a", 2)])) == []


def test_actors_without_gpus_avoid_nodes_with_gpus() -> None:
    needs = needs_of(
        config(
            reward={"cpus_per_worker": 2}, rollout={"workers": 1, "gpus_per_worker": 1, "cpus_per_worker": 2}
        )
    )
    assert list(shortfalls(needs, [node("gpu", 2, 1), node("cpu", 3)])) == []


@pytest.mark.parametrize(("engine", "fits"), [(0.4, True), (0.5, False)])
def test_no_actor_is_divided_among_several_gpus(engine: float, fits: bool) -> None:
    """Two ranks leave 0.4 of each GPU, and together 0.8, which is not enough for one engine of 0.5."""
    run = config(
        rollout={"workers": 2, "gpus_per_worker": engine, "cpus_per_worker": 0.1},
        learner={"ranks": 2, "gpus_per_rank": 0.6},
    )
    problems = list(shortfalls(needs_of(run), [node("gpu", 8, 2)]))
    assert [problem.where for problem in problems] == ([] if fits else ["rollout.workers"])


@pytest.mark.parametrize(
    ("condition", "value", "matches"),
    [
        ("spot", "spot", True),
        ("spot", "x", False),
        ("spot", None, False),
        ("!spot", "x", True),
        ("!spot", "spot", False),
        ("in(a, b)", "b", True),
        ("in(a,b)", "c", False),
        ("!in(a, b)", "c", True),
        ("!in(a, b)", "a", False),
    ],
)
def test_labels_are_compared_as_ray_does(condition: str, value: str | None, matches: bool) -> None:
    labels = {} if value is None else {"pool": value}
    assert has_labels(Node("a", {}, labels), {"pool": condition}) is matches


@given(st.integers(0, 5), st.lists(st.integers(0, 4), max_size=4), st.integers(1, 3))
def test_equal_actors_fit_if_the_nodes_together_have_enough_slots(
    count: int, nodes: list[int], each: int
) -> None:
    needs = [Need("rollout", "rollout worker", count, {"CPU": each}, {}, "rollout.workers")]
    fits = sum(cpus // each for cpus in nodes) >= count
    there = [node(str(index), cpus) for index, cpus in enumerate(nodes)] or [node("none", 0)]
    assert (not list(shortfalls(needs, there))) == fits
