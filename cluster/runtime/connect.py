"""Connect to a Ray cluster, or start Ray on this machine. A refusal is one line with its cause and its remedy."""

from __future__ import annotations

import importlib
import logging
import os
import platform
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants

from cluster.core.addresses import ADDRESS_VARIABLE, cluster_address, refuse_job_server
from cluster.core.config import ClusterConfig
from cluster.core.project import ROOT
from cluster.runtime.actor_logs import SETUP_HOOK
from cluster.runtime.auth import token_sources
from cluster.runtime.capacity import Node
from cluster.runtime.job import code_is_packaged, current_job

PROBE_TIMEOUT_S = 10.0
LOOPBACK = ("127.0.0.1", "[::1]")
"""The hosts of an address at which Ray serves this machine alone."""
_PACKAGES = ("cluster", "rollout", "learner", "reward")


class ClusterRefusedError(ConnectionError):
    """A cluster exists at the address, but it does not accept this process."""


def connect(config: ClusterConfig) -> str:
    """Connect to the configured Ray cluster, or start Ray on this machine. Return a description of it.

    Raises:
        ConnectionError: if no Ray listens at the address, if the cluster refuses this process, or if Ray does not
            start on this machine.
    """
    address = cluster_address(os.environ[ADDRESS_VARIABLE] if current_job() else config.address)
    runtime_env: dict[str, Any] = {"worker_process_setup_hook": SETUP_HOOK}
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        options["address"] = address
        if (
            not code_is_packaged()
        ):  # otherwise every process already has the code in the job's working directory
            # Nodes need not have this project installed: Ray copies its packages to them.
            runtime_env["py_modules"] = [
                str(Path(importlib.import_module(package).__file__ or "").parent) for package in _PACKAGES
            ]
        with explained_connection(address), loopback_kept():
            ray.init(runtime_env=runtime_env, **options)
        return f"the Ray cluster at {address}"

    # Without an address Ray would connect to any cluster started on this machine, or fail if that one has ended.
    options |= {"address": "local", "include_dashboard": False, "num_cpus": os.cpu_count()}
    # Local processes import the project from the driver's location, whatever their working directory.
    search_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # DeepSpeed compiles an operator with the ninja that is installed beside Python.
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    runtime_env["env_vars"] = {"PYTHONPATH": search_path, "PATH": programs}
    with explained_start(), loopback_kept():
        ray.init(runtime_env=runtime_env, **options)
    return "Ray on this machine"


@contextmanager
def loopback_kept() -> Iterator[None]:
    """Let `ray.init` in the block use 127.0.0.1: a Ray that it starts listens there only, and an address with it is
    used as it is.

    By default Ray replaces 127.0.0.1 by the address of a network interface, and all servers of a node with such an
    address listen on all addresses. RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 prevents that on every system, but Ray reads
    the variable only when it is imported, and child processes that join a cluster must not inherit it.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def reachable_address() -> str:
    """Return the HOST:PORT under which the connected cluster is reached from all its nodes."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    if host in LOOPBACK:  # then the head of the cluster is this machine, which may have another address in it
        host = ray.util.get_node_ip_address()
    return f"{host}:{port}"


def probe(address: str) -> None:
    """Return at once if a server listens at `HOST:PORT`. Ray itself tries for minutes to reach a cluster that is gone.

    Other forms of address, such as `auto`, are not probed.

    Raises:
        OSError: if no server listens there.
        AddressError: if it is not an address, or that of a job server.
    """
    parsed = refuse_job_server(address)
    if not parsed.scheme and parsed.host and parsed.port:
        with socket.create_connection((parsed.host, parsed.port), timeout=PROBE_TIMEOUT_S):
            pass


@contextmanager
def explained_connection(address: str) -> Iterator[None]:
    """Translate the failures of the block's `ray.init` into one line each.

    Raises:
        ConnectionError: if no Ray listens at `address`.
        ClusterRefusedError: if the cluster does not accept this process.
        AddressError: if `address` is not an address.
    """
    try:
        probe(address)
    except OSError as error:
        raise ConnectionError(
            f"no Ray cluster listens at {address} ({error.strerror or error}): check on the head node that it is up "
            "(ray status), and check the address and the port (6379 unless it was started with --port)"
        ) from error
    try:
        yield
    except ray.exceptions.AuthenticationError as error:
        raise ClusterRefusedError(
            f"the cluster at {address} requires a token: run RAY_AUTH_MODE=token launch.py …, which sends the token "
            f"from {token_sources()}"
        ) from error
    except RuntimeError as error:
        if found := re.search(r"started with:\s+Ray: (\S+)\s+Python: (\S+)", str(error)):
            raise ClusterRefusedError(
                f"the cluster at {address} runs Ray {found[1]} and Python {found[2]}, and this environment has Ray "
                f"{ray.__version__} and Python {platform.python_version()}: both must be the same; install the "
                "versions of requirements/ on all nodes"
            ) from error
        raise


@contextmanager
def explained_start() -> Iterator[None]:
    """Translate the failure of the block's `ray.init`, which starts Ray on this machine, into one line.

    Raises:
        ConnectionError: if Ray did not start within its own limit of 30 s.
    """
    try:
        yield
    except Exception as error:
        if "timed out during startup" not in str(error):  # Ray has no exception class for it
            raise
        raise ConnectionError(
            "Ray did not start on this machine within 30 s, probably because the machine is busy or short of memory: "
            "launch.py doctor shows what is free; then run the same command again"
        ) from error


def cluster_nodes() -> list[Node]:
    """Return the living nodes of the connected cluster."""
    return [
        Node(node["NodeManagerAddress"], node.get("Resources", {}), node.get("Labels", {}))
        for node in ray.nodes()
        if node["Alive"]
    ]
