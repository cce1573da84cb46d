"""Examine this machine, or every node of a cluster, and check a configuration and the W&B key."""

from __future__ import annotations

import os
import socket
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.commands.doctor.assessment import (
    VLLM,
    Finding,
    Located,
    assess_alike,
    assess_machine,
    merged,
    pins,
)
from cluster.commands.doctor.facts import MachineFacts, machine_facts
from cluster.configuration.machine_checks import known_shape, with_chosen_defaults
from cluster.configuration.memory import GIB, shared_memory, version_bytes
from cluster.configuration.preflight import preflight
from cluster.core.config import ClusterConfig, RunConfig
from cluster.core.project import ROOT
from cluster.models.source import ready_directory
from cluster.runtime.capacity import Node, needs_of, shortfalls
from cluster.runtime.connect import cluster_nodes, connect

NODE_TIMEOUT_S = 240.0
WANDB_ENDS_TIMEOUT_S = 5.0
JOB_SERVER_PORT = 8265
HEAD_PORT = 6379
_PROJECT_FILE = ROOT / "pyproject.toml"


def examine(
    config: RunConfig | None, address: str | None, progress: Callable[[str], None]
) -> Iterator[Located]:
    """Yield all findings about this machine, or about the cluster at `address`, and about a run if one is given."""
    pinned = _pins()
    if config is not None:
        config, _ = with_chosen_defaults(config)
    published_gib = _published_gib(config)
    packages = [*(name for name in pinned if name not in VLLM), *VLLM]
    config_or_default = config or RunConfig()
    folders = [str(config_or_default.run_directory.parent), _cache(config_or_default), "/tmp"]
    here = "this machine"
    if address is None:
        progress("examining this machine")
        facts = machine_facts(packages, folders)
        yield from ((here, finding) for finding in assess_machine(facts, pinned, config, published_gib))
        yield from ((here, finding) for finding in ports())
    progress("connecting to the cluster" if address else "starting Ray")
    try:
        started = time.monotonic()
        with _ray(address) as nodes:
            took_s = time.monotonic() - started
            stored_gib = max(0.5, _stored_gib(config))
            yield from (
                (address or here, finding) for finding in _of_cluster(nodes, took_s, address, stored_gib)
            )
            if address:
                progress(f"examining {len(nodes)} nodes")
                yield from _of_nodes(nodes, packages, folders, pinned, config)
                if config:
                    yield from (
                        (address, Finding("fail", problem.where, problem.what, problem.fix))
                        for problem in shortfalls(needs_of(config), nodes)
                    )
    except ConnectionError as error:
        yield address or here, Finding("fail", "Ray", str(error))
    if config:
        progress("checking the configuration")
        yield from (("run", finding) for finding in _of_run(config))
    progress("checking W&B")
    wanted = config_or_default.tracking.wandb
    if wanted != "disabled":
        yield here, wandb_login()


def _published_gib(config: RunConfig | None) -> float:
    """Return the shared memory that new weights of the run's model need, or 0 if its size is not known."""
    shape = known_shape(config) if config is not None else None
    return shared_memory(config, shape).total / GIB if config is not None and shape is not None else 0.0


def _stored_gib(config: RunConfig | None) -> float:
    """Return the object store that two versions of the run's weights need, or 0 if their size is not known."""
    shape = known_shape(config) if config is not None else None
    return 2 * version_bytes(config, shape) / GIB if config is not None and shape is not None else 0.0


def _pins() -> dict[str, str]:
    project = tomllib.loads(_PROJECT_FILE.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    return pins([*project["dependencies"], *extras["cpu"], *extras["gpu"]])


def _cache(config: RunConfig) -> str:
    return str(config.model.cache_directory.expanduser())


@contextmanager
def _ray(address: str | None) -> Iterator[list[Node]]:
    """Connect to the cluster, or start Ray on this machine, for the block. Yield the nodes."""
    connect(ClusterConfig(address=address))
    try:
        yield cluster_nodes()
    finally:
        ray.shutdown()


def _of_cluster(
    nodes: Sequence[Node], took_s: float, address: str | None, needed_gib: float
) -> Iterator[Finding]:
    def total(kind: str) -> float:
        return sum(node.resources.get(kind, 0) for node in nodes)

    connected = f"{'connected' if address else 'started'} in {took_s:.0f} s"
    yield Finding(
        "ok", "Ray", f"{connected}: {len(nodes)} node(s), {total('CPU'):g} CPU, {total('GPU'):g} GPU"
    )
    for node in nodes:
        store_gib = node.resources.get("object_store_memory", 0) / 2**30
        if store_gib < needed_gib:
            yield Finding(
                "warn",
                "object store",
                f"{store_gib:.2f} GiB on {node.name}; two versions of the weights need {needed_gib:.2f}",
                "run ray start with --object-store-memory BYTES, and enlarge /dev/shm",
            )


def _of_nodes(
    nodes: Sequence[Node],
    packages: Sequence[str],
    folders: Sequence[str],
    pinned: dict[str, str],
    config: RunConfig | None,
) -> Iterator[Located]:
    with _token_file(config) as token:
        files = [str(token)] if token else []
        if config and (model := _model_directory(config)):
            files.append(str(model))
        facts, silent = _facts_of(nodes, packages, folders, files)
    for name in silent:
        fix = "check `ray status`, and the logs in /tmp/ray/session_latest/logs on that node"
        yield name, Finding("fail", "tasks", f"no Ray task finished within {NODE_TIMEOUT_S:g} s", fix)
    yield from (("the cluster", finding) for finding in assess_alike(facts))
    yield from merged(
        {
            name: list(assess_machine(one, pinned, config, _published_gib(config)))
            for name, one in facts.items()
        }
    )
    if config and len(facts) > 1 and all(all(one.seen.values()) for one in facts.values()):
        yield "all nodes", Finding("ok", "shared storage", f"all nodes share {config.run_directory.parent}")


def _facts_of(
    nodes: Sequence[Node], packages: Sequence[str], folders: Sequence[str], files: Sequence[str]
) -> tuple[dict[str, MachineFacts], list[str]]:
    """Return the facts by node, and the names of the nodes that did not answer."""
    task = ray.remote(num_cpus=0, max_retries=0)(machine_facts)
    requested = {}
    for node in nodes:
        where = NodeAffinitySchedulingStrategy(node.labels["ray.io/node-id"], soft=False)
        requested[task.options(scheduling_strategy=where).remote(packages, folders, files)] = _unique(
            node, nodes
        )
    done, waiting = ray.wait(list(requested), num_returns=len(requested), timeout=NODE_TIMEOUT_S)
    facts, silent = {}, [requested[reference] for reference in waiting]
    for reference in done:
        try:
            facts[requested[reference]] = ray.get(reference)
        except ray.exceptions.RayError:
            silent.append(requested[reference])
    return facts, silent


def _unique(node: Node, nodes: Sequence[Node]) -> str:
    """Return a name for the node that is unique even if several nodes run on one machine."""
    alone = sum(other.name == node.name for other in nodes) == 1
    return node.name if alone else f"{node.name}/{node.labels['ray.io/node-id'][:6]}"


@contextmanager
def _token_file(config: RunConfig | None) -> Iterator[Path | None]:
    """Create a file beside the run directories for the block. Every node that sees it shares their storage."""
    if config is None:
        yield None
        return
    folder = config.run_directory.parent
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f".doctor-{uuid.uuid4().hex}"
    file.touch()
    try:
        yield file
    finally:
        file.unlink()


def _model_directory(config: RunConfig) -> Path | None:
    try:
        return ready_directory(config)
    except ValueError:
        return None  # preflight reports it


def _of_run(config: RunConfig) -> Iterator[Finding]:
    problems = preflight(config)
    yield from (Finding("fail", problem.where, problem.what, problem.fix) for problem in problems)
    if problems:
        return
    yield Finding("ok", "configuration", f"{config.name}: valid, and its data is readable")
    model = _model_directory(config)
    yield Finding(
        "ok", "model", str(model) if model else f"{config.model.source}: prepared when the run starts"
    )


def ports() -> Iterator[Finding]:
    """Check that Ray's default ports are free for a head node on this machine."""
    for port, option in ((HEAD_PORT, "--port"), (JOB_SERVER_PORT, "--dashboard-port")):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                yield Finding(
                    "warn",
                    f"port {port}",
                    "in use by a Ray head node (then give its --address) or by another program",
                    f"ray start --head {option} OTHER, to start a head node here",
                )
            else:
                yield Finding("ok", f"port {port}", "free")


def wandb_login() -> Finding:
    """Check whether W&B will log runs online. Only the key is sent, to W&B's own server, to verify it."""
    from cluster.tracking import wandb_process

    if os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled"):
        return Finding("ok", "W&B", f"WANDB_MODE={os.environ['WANDB_MODE']}")
    try:
        return _key_and_server()
    finally:
        wandb_process.end(WANDB_ENDS_TIMEOUT_S)


def _key_and_server() -> Finding:
    import wandb

    from cluster.tracking.wandb_process import unreachable

    server = wandb.setup().settings.base_url
    trouble = unreachable(server)
    try:
        if not wandb.login(prompt=False, verify=not trouble):
            return Finding(
                "warn",
                "W&B",
                "no key is configured, so runs are logged to their directory only",
                "wandb login",
            )
    except (wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
        found = " ".join(str(error).split())[:200]
        return Finding("fail", "W&B", f"the server does not accept the key: {found}", "wandb login --relogin")
    if trouble:
        found = f"{server} cannot be reached ({trouble}), so runs are logged to their directory only"
        return Finding("warn", "W&B", found, "run wandb sync RUN_DIRECTORY/wandb/offline-run-* later")
    return Finding("ok", "W&B", "a key is configured, and the server accepts it")
