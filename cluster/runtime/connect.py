"""Joining a Ray cluster, or saying in one line why not, and what to do."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from cluster.runtime.auth import token_places
from cluster.runtime.capacity import Node
from cluster.runtime.probe import probe


class ClusterRefusedError(ConnectionError):
    """There is a cluster, and this process cannot join it."""


@contextmanager
def explained_joining(address: str) -> Iterator[None]:
    """The failures of the `ray.init` in the block.

    Raises:
        ConnectionError: nobody is there. ClusterRefusedError: it does not let us in.
    """
    if "://" in address and not address.startswith("ray://"):
        raise ClusterRefusedError(
            f"{address} is a job server: launch.py submit sends a run there. To join the cluster from one of its "
            "machines give --address HOST:6379"
        )
    try:
        probe(address)
    except OSError as error:
        raise ConnectionError(
            f"there is no Ray at {address} ({error.strerror or error}): is the head node up (ray status), and is this "
            "its address and port (6379 unless it was started with --port)?"
        ) from error
    try:
        yield
    except ray.exceptions.AuthenticationError as error:
        raise ClusterRefusedError(
            f"the cluster at {address} asks for a token: RAY_AUTH_MODE=token launch.py … sends it the one of "
            f"{token_places()}"
        ) from error
    except RuntimeError as error:
        if found := re.search(r"started with:\s+Ray: (\S+)\s+Python: (\S+)", str(error)):
            theirs = f"Ray {found[1]} and Python {found[2]}"
            raise ClusterRefusedError(
                f"the cluster at {address} runs {theirs}, and this environment has Ray {ray.__version__} and Python "
                f"{platform.python_version()}: both must be the same; install what requirements/ names on all nodes"
            ) from error
        raise


@contextmanager
def explained_starting() -> Iterator[None]:
    """The failure of the `ray.init` in the block that starts Ray on this machine.

    Raises:
        ConnectionError: it did not start in the half a minute that Ray allows it.
    """
    try:
        yield
    except Exception as error:
        if "timed out during startup" not in str(error):  # Ray has no class for it
            raise
        raise ConnectionError(
            "Ray did not start on this machine within 30 s: is it busy with other work, or short of memory? "
            "launch.py doctor looks; then give the same command again"
        ) from error


def cluster_nodes() -> list[Node]:
    """The living nodes of the cluster that was joined."""
    return [
        Node(node["NodeManagerAddress"], node.get("Resources", {}), node.get("Labels", {}))
        for node in ray.nodes()
        if node["Alive"]
    ]
