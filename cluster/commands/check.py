"""`launch.py check --cluster`: what a run needs against what its cluster has."""

from __future__ import annotations

import ray

from cluster.core.config import RunConfig
from cluster.core.problem import Problem
from cluster.runtime.capacity import needs_of, shortfalls
from cluster.runtime.connect import cluster_nodes, connect


def check_cluster(config: RunConfig) -> tuple[list[Problem], str]:
    """What the configured cluster lacks for `config`, and what it has, in words.

    Raises:
        ConnectionError: it cannot be joined.
    """
    connect(config.cluster)
    try:
        nodes = cluster_nodes()
        free = ray.available_resources()
    finally:
        ray.shutdown()
    totals = {kind: sum(node.resources.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}
    has = ", ".join(
        f"{total:g} {kind} ({free.get(kind, 0):g} free)" for kind, total in totals.items() if total
    )
    return list(shortfalls(needs_of(config), nodes)), f"{len(nodes)} node(s), {has}"
