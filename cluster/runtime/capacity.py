"""Whether a cluster has what a run needs: its actors are laid out on the nodes, as Ray would do it. Pure, Ray-free."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cluster.configuration.loading import Problem
from cluster.core.config import Room, RunConfig


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a cluster: all that it has, whether or not others use it at the moment."""

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Need:
    """`count` actors, each of which needs `resources` on one node with `labels`."""

    room: Room
    what: str
    count: int
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    setting: str
    """What asks for so much."""


def needs_of(config: RunConfig) -> list[Need]:
    """The actors of a run."""
    rollout, learner, reward = config.rollout, config.learner, config.reward

    def need(room: Room, what: str, count: int, cpus: float, gpus: float, setting: str) -> Need:
        asked = {kind: amount for kind, amount in (("CPU", cpus), ("GPU", gpus)) if amount}
        return Need(room, what, count, asked, config.cluster.node_labels.get(room, {}), setting)

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
    """What the cluster lacks. The needs that can go to the fewest nodes are laid out first, and who needs no GPU goes
    to the nodes that have the fewest."""
    nodes = sorted(nodes, key=lambda node: node.resources.get("GPU", 0))
    left = [dict(node.resources) for node in nodes]
    fitting = {
        need.room: [index for index, node in enumerate(nodes) if has_labels(node, need.labels)]
        for need in needs
    }
    for need in sorted(needs, key=lambda need: len(fitting[need.room])):
        candidates = fitting[need.room]
        if not candidates:
            yield Problem(
                f"cluster.node_labels.{need.room}",
                f"no node of the cluster has the labels {_labels(need.labels)} (there are: {_seen_labels(nodes)})",
                f"start a node with them (ray start --address … --labels {_labels(need.labels, ',')}), or change them",
            )
            continue
        placed = sum(_place(need.resources, [left[index] for index in candidates]) for _ in range(need.count))
        if placed < need.count:
            where = f" on the nodes with {_labels(need.labels)}" if need.labels else ""
            there = "; ".join(
                f"{nodes[index].name}: {_amounts(nodes[index].resources)}" for index in candidates
            )
            yield Problem(
                need.setting,
                f"the cluster has room for {placed} of {need.count} {need.what}s of {_amounts(need.resources)} "
                f"each{where}, beside what else the run needs ({there})",
                "lower the number or what each one reserves, or add nodes",
            )


def has_labels(node: Node, wanted: Mapping[str, str]) -> bool:
    """Ray's rules: a value, `!value`, `in(a, b)` or `!in(a, b)`."""
    return all(_matches(node.labels.get(key), condition) for key, condition in wanted.items())


def _matches(value: str | None, condition: str) -> bool:
    negated = condition.startswith("!")
    condition = condition.removeprefix("!")
    listed = re.fullmatch(r"in\((.*)\)", condition)
    values = [one.strip() for one in listed[1].split(",")] if listed else [condition]
    return (value in values) != negated


def _place(asked: Mapping[str, float], left: Sequence[dict[str, float]]) -> bool:
    """Whether one of the nodes, of which so much is left, takes it; then less is left."""
    for free in left:
        if all(round(free.get(kind, 0) - amount, 4) >= 0 for kind, amount in asked.items()):
            for kind, amount in asked.items():
                free[kind] = round(free[kind] - amount, 4)  # as Ray counts
            return True
    return False


def _labels(labels: Mapping[str, str], separator: str = ", ") -> str:
    return separator.join(f"{key}={value}" for key, value in labels.items())


def _seen_labels(nodes: Sequence[Node]) -> str:
    own = {
        f"{key}={value}" for node in nodes for key, value in node.labels.items() if key != "ray.io/node-id"
    }
    return ", ".join(sorted(own)) or "none"


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
