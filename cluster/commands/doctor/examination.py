"""Asks this machine, or every node of a cluster, and looks at a configuration and the keys."""

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

from cluster.commands.doctor.assessment import VLLM, Finding, assess_alike, assess_machine, merged, pins
from cluster.commands.doctor.facts import MachineFacts, machine_facts
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
Located = tuple[str, Finding]
"""Where, and what."""


def examine(
    config: RunConfig | None, address: str | None, progress: Callable[[str], None]
) -> Iterator[Located]:
    """All findings, as they come: of this machine, or of the cluster at `address`; and of a run, if there is one."""
    pinned = _pins()
    packages = [*(name for name in pinned if name not in VLLM), *VLLM]
    config_or_default = config or RunConfig()
    folders = [str(config_or_default.run_directory.parent), _cache(config_or_default), "/tmp"]
    wants_gpus = None if config is None else any(need.resources.get("GPU") for need in needs_of(config))
    here = "this machine"
    if address is None:
        progress("looking at this machine")
        facts = machine_facts(packages, folders)
        yield from ((here, finding) for finding in assess_machine(facts, pinned, wants_gpus))
        yield from ((here, finding) for finding in ports())
    progress("joining the cluster" if address else "starting Ray")
    try:
        started = time.monotonic()
        with _ray(address) as nodes:
            took_s = time.monotonic() - started
            yield from ((address or here, finding) for finding in _of_cluster(nodes, took_s, address))
            if address:
                progress(f"looking at {len(nodes)} nodes")
                yield from _of_nodes(nodes, packages, folders, pinned, wants_gpus, config)
                if config:
                    yield from (
                        (address, Finding("fail", problem.where, problem.what, problem.fix))
                        for problem in shortfalls(needs_of(config), nodes)
                    )
    except ConnectionError as error:
        yield address or here, Finding("fail", "Ray", str(error))
    if config:
        progress("looking at the configuration")
        yield from (("run", finding) for finding in _of_run(config))
    progress("looking at W&B")
    wanted = config_or_default.tracking.wandb
    if wanted != "disabled":
        yield here, wandb_login()


def _pins() -> dict[str, str]:
    project = tomllib.loads(_PROJECT_FILE.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    return pins([*project["dependencies"], *extras["cpu"], *extras["gpu"]])


def _cache(config: RunConfig) -> str:
    return str(config.model.cache_directory.expanduser())


@contextmanager
def _ray(address: str | None) -> Iterator[list[Node]]:
    """The nodes of the cluster, or of a Ray that is started for the block."""
    connect(ClusterConfig(address=address))
    try:
        yield cluster_nodes()
    finally:
        ray.shutdown()


def _of_cluster(nodes: Sequence[Node], took_s: float, address: str | None) -> Iterator[Finding]:
    def total(kind: str) -> float:
        return sum(node.resources.get(kind, 0) for node in nodes)

    did = f"{'joined' if address else 'starts'} in {took_s:.0f} s"
    yield Finding("ok", "Ray", f"{did}: {len(nodes)} node(s), {total('CPU'):g} CPU, {total('GPU'):g} GPU")
    for node in nodes:
        store_gib = node.resources.get("object_store_memory", 0) / 2**30
        if store_gib < 0.5:
            yield Finding(
                "warn",
                "object store",
                f"{store_gib:.2f} GiB on {node.name}: two versions of the weights must fit",
                "ray start --object-store-memory BYTES, and a larger /dev/shm",
            )


def _of_nodes(
    nodes: Sequence[Node],
    packages: Sequence[str],
    folders: Sequence[str],
    pinned: dict[str, str],
    wants_gpus: bool | None,
    config: RunConfig | None,
) -> Iterator[Located]:
    with _token_file(config) as token:
        files = [str(token)] if token else []
        if config and (model := _model_directory(config)):
            files.append(str(model))
        facts, silent = _facts_of(nodes, packages, folders, files)
    for name in silent:
        fix = "look at `ray status`, and at the logs in /tmp/ray/session_latest/logs there"
        yield name, Finding("fail", "tasks", f"ran none within {NODE_TIMEOUT_S:g} s", fix)
    yield from (("the cluster", finding) for finding in assess_alike(facts))
    yield from merged({name: list(assess_machine(one, pinned, wants_gpus)) for name, one in facts.items()})
    if config and len(facts) > 1 and all(all(one.seen.values()) for one in facts.values()):
        yield "all nodes", Finding("ok", "shared storage", f"{config.run_directory.parent} is seen")


def _facts_of(
    nodes: Sequence[Node], packages: Sequence[str], folders: Sequence[str], files: Sequence[str]
) -> tuple[dict[str, MachineFacts], list[str]]:
    """By node, and the nodes that did not answer."""
    task = ray.remote(num_cpus=0, max_retries=0)(machine_facts)
    asked = {}
    for node in nodes:
        where = NodeAffinitySchedulingStrategy(node.labels["ray.io/node-id"], soft=False)
        asked[task.options(scheduling_strategy=where).remote(packages, folders, files)] = _unique(node, nodes)
    done, waiting = ray.wait(list(asked), num_returns=len(asked), timeout=NODE_TIMEOUT_S)
    facts, silent = {}, [asked[reference] for reference in waiting]
    for reference in done:
        try:
            facts[asked[reference]] = ray.get(reference)
        except ray.exceptions.RayError:
            silent.append(asked[reference])
    return facts, silent


def _unique(node: Node, nodes: Sequence[Node]) -> str:
    """Several nodes may be on one machine."""
    alone = sum(other.name == node.name for other in nodes) == 1
    return node.name if alone else f"{node.name}/{node.labels['ray.io/node-id'][:6]}"


@contextmanager
def _token_file(config: RunConfig | None) -> Iterator[Path | None]:
    """A file where run directories are made; whoever sees it shares that place."""
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
        return None  # said by preflight


def _of_run(config: RunConfig) -> Iterator[Finding]:
    problems = preflight(config)
    yield from (Finding("fail", problem.where, problem.what, problem.fix) for problem in problems)
    if problems:
        return
    yield Finding("ok", "configuration", f"{config.name}: sound; its data is there")
    model = _model_directory(config)
    yield Finding(
        "ok", "model", str(model) if model else f"{config.model.source}: is made ready when the run starts"
    )


def ports() -> Iterator[Finding]:
    """Whether Ray's usual ports are free for a head node on this machine."""
    for port, option in ((HEAD_PORT, "--port"), (JOB_SERVER_PORT, "--dashboard-port")):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                yield Finding(
                    "warn",
                    f"port {port}",
                    "is taken: by a Ray head node (then give its --address), or something else",
                    f"ray start --head {option} OTHER, if you want to start one here",
                )
            else:
                yield Finding("ok", f"port {port}", "is free")


def wandb_login() -> Finding:
    """Whether runs will be logged online. Nothing is sent but the key, to W&B's own server, to be verified."""
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
                "warn", "W&B", "no key is configured: runs are logged into their directory", "wandb login"
            )
    except (wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
        said = " ".join(str(error).split())[:200]
        return Finding("fail", "W&B", f"the key is not accepted: {said}", "wandb login --relogin")
    if trouble:
        said = f"{server} cannot be reached ({trouble}): runs are logged into their directory"
        return Finding("warn", "W&B", said, "wandb sync RUN_DIRECTORY/wandb/offline-run-*, later")
    return Finding("ok", "W&B", "a key is configured, and accepted")
