"""Compare the resources that a run needs with those of a cluster, placing its actors on nodes as Ray would.

The functions are pure and import no Ray.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cluster.core.config import ActorRole, RunConfig
from cluster.core.gpu_slots import take_gpus
from cluster.core.problem import Problem


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a cluster with its total resources, whether or not they are in use at the moment."""

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Need:
    """`count` actors, each of which needs `resources` on one node with `labels`."""

    kind: ActorRole
    """The kind of actor, as in `cluster.node_labels`."""
    what: str
    count: int
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    setting: str
    """The setting that determines `count`."""


def needs_of(config: RunConfig) -> list[Need]:
    """Return the actors of a run with their resources."""
    rollout, learner, reward = config.rollout, config.learner, config.reward

    def need(kind: ActorRole, what: str, count: int, cpus: float, gpus: float, setting: str) -> Need:
        requested = {resource: amount for resource, amount in (("CPU", cpus), ("GPU", gpus)) if amount}
        return Need(kind, what, count, requested, config.cluster.node_labels.get(kind, {}), setting)

    return [
        need("learner", "learner rank", learner.ranks, learner.cpus_per_rank, learner.gpus_per_rank, "learner.ranks"),
        need("reward", "reward actor", reward.workers, reward.cpus_per_worker, 0, "reward.workers"),
        need(
            "rollout",
            "rollout worker",
            rollout.workers,
            rollout.cpus_per_worker,
            rollout.gpus_per_worker,
            "rollout.workers",
        ),
    ]  # fmt: skip


def shortfalls(needs: Sequence[Need], nodes: Sequence[Node]) -> Iterator[Problem]:
    """Yield the resources that the cluster lacks.

    The needs that fit the fewest nodes are placed first. Actors without GPUs go to the nodes with the fewest GPUs.
    """
    nodes = sorted(nodes, key=lambda node: node.resources.get("GPU", 0))
    left = [_Left.of(node) for node in nodes]
    fitting = {
        need.kind: [index for index, node in enumerate(nodes) if has_labels(node, need.labels)]
        for need in needs
    }
    for need in sorted(needs, key=lambda need: len(fitting[need.kind])):
        candidates = fitting[need.kind]
        if not candidates:
            yield Problem(
                f"cluster.node_labels.{need.kind}",
                f"no node of the cluster has the labels {_labels(need.labels)} (existing labels: "
                f"{_existing_labels(nodes)})",
                f"start a node with them (ray start --address … --labels {_labels(need.labels, ',')}), or change them",
            )
            continue
        placed = sum(_take(need.resources, [left[index] for index in candidates]) for _ in range(need.count))
        if placed < need.count:
            where = f" on the nodes with {_labels(need.labels)}" if need.labels else ""
            existing = "; ".join(
                f"{nodes[index].name}: {_amounts(nodes[index].resources)}" for index in candidates
            )
            yield Problem(
                need.setting,
                f"the cluster has resources for {placed} of {need.count} {need.what}s of {_amounts(need.resources)} "
                f"each{where}, in addition to the run's other actors ({existing})",
                "lower the number or the resources of each, or add nodes",
            )


def has_labels(node: Node, wanted: Mapping[str, str]) -> bool:
    """Return True if the node satisfies all conditions, by Ray's rules: a value, `!value`, `in(a, b)`, `!in(a, b)`."""
    return all(_matches(node.labels.get(key), condition) for key, condition in wanted.items())


def _matches(value: str | None, condition: str) -> bool:
    negated = condition.startswith("!")
    condition = condition.removeprefix("!")
    listed = re.fullmatch(r"in\((.*)\)", condition)
    values = [one.strip() for one in listed[1].split(",")] if listed else [condition]
    return (value in values) != negated


@dataclass(slots=True)
class _Left:
    """The resources of a node that are not taken yet."""

    amounts: dict[str, float]
    gpus: list[float]
    """The part of each GPU that is left: an actor is never divided among several GPUs."""

    @classmethod
    def of(cls, node: Node) -> _Left:
        return cls(dict(node.resources), [1.0] * int(node.resources.get("GPU", 0)))


def _take(requested: Mapping[str, float], left: Sequence[_Left]) -> bool:
    """Subtract `requested` from the first node that has enough left. Return False if no node has."""
    for free in left:
        enough = all(round(free.amounts.get(kind, 0) - amount, 4) >= 0 for kind, amount in requested.items())
        if enough and take_gpus(requested.get("GPU", 0), free.gpus):
            for kind, amount in requested.items():
                free.amounts[kind] = round(free.amounts[kind] - amount, 4)  # Ray's own precision
            return True
    return False


def _labels(labels: Mapping[str, str], separator: str = ", ") -> str:
    return separator.join(f"{key}={value}" for key, value in labels.items())


def _existing_labels(nodes: Sequence[Node]) -> str:
    own = {
        f"{key}={value}" for node in nodes for key, value in node.labels.items() if key != "ray.io/node-id"
    }
    return ", ".join(sorted(own)) or "none"


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
