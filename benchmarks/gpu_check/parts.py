"""The parts of the check, the cheapest first. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """One part, which runs in a process of its own and needs no other part."""

    name: str
    title: str
    function: str
    """A function of `Settings` and `Findings`, as `module:function`."""
    packages: tuple[str, ...]
    """The packages that it imports, as modules. It is not run where one of them is not installed."""
    limit_s: float
    """The longest time until its process is killed with all that it started."""
    remedy: str
    """The advice if it ends with an error or hangs."""


_MODEL = ("torch", "transformers", "numpy", "pydantic")

PARTS: tuple[Part, ...] = (
    Part(
        "environment",
        "Driver, CUDA, torch, memory, shared memory, versions",
        "benchmarks.gpu_check.environment:check_environment",
        ("torch",),
        90.0,
        "Install the GPU build (make setup PLATFORM=gpu), and run nvidia-smi to see whether the driver answers.",
    ),
    Part(
        "link",
        "The weight channel: members that do not arrive, die, or share a device",
        "benchmarks.gpu_check.link:check_link",
        ("torch",),
        180.0,
        "Set rollout.weight_transport: pull, which uses no weight channel, until this part passes.",
    ),
    Part(
        "sharing",
        "Memory that two processes of one device share",
        "benchmarks.gpu_check.sharing:check_sharing",
        ("torch",),
        180.0,
        "Do not set rollout.weight_transport: ipc until this part passes; pull and broadcast do not need it.",
    ),
    Part(
        "paths",
        "Prefix sharing against every response alone",
        "benchmarks.gpu_check.paths:check_paths",
        _MODEL,
        120.0,
        "Set learner.prefix_sharing: off, which computes every response alone, until this part passes.",
    ),
    Part(
        "kernels",
        "Attention kernels and peak memory by length",
        "benchmarks.gpu_check.kernels:check_kernels",
        _MODEL,
        180.0,
        "Set learner.prefix_sharing: off, and lower model.max_context_tokens to a length that is in the table.",
    ),
    Part(
        "memory",
        "Peak memory of a micro-batch against the estimate",
        "benchmarks.gpu_check.memory:check_memory",
        _MODEL,
        120.0,
        "Lower learner.micro_batch_tokens, or set learner.gradient_checkpointing: true.",
    ),
    Part(
        "steps",
        "A learner step with each ZeRO stage against float32 on the CPU",
        "benchmarks.gpu_check.steps:check_steps",
        (*_MODEL, "deepspeed", "psutil"),
        300.0,
        "Use a learner.zero_stage and learner.offload for which the table shows a small difference.",
    ),
    Part(
        "copies",
        "Copies between host and device, and writes to /dev/shm",
        "benchmarks.gpu_check.copies:check_copies",
        ("torch",),
        90.0,
        "Raise the limit on locked memory (ulimit -l unlimited) and the size of /dev/shm (docker run --shm-size=16g).",
    ),
    Part(
        "engine",
        "A vLLM engine: sampling, reload, update during sampling, sleep, probe",
        "benchmarks.gpu_check.engine:check_engine",
        (*_MODEL, "vllm", "ray", "safetensors"),
        480.0,
        "Install the lock again (make setup PLATFORM=gpu), and check that the GPU's memory is free (nvidia-smi).",
    ),
)

QUICK = tuple(part.name for part in PARTS if part.name != "engine")
"""The parts that need no engine."""


def chosen(names: tuple[str, ...]) -> tuple[Part, ...]:
    """Return the parts with these names, in the order of `PARTS`.

    Raises:
        ValueError: if there is no part of a name.
    """
    known = [part.name for part in PARTS]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no part is named {', '.join(unknown)}; the parts are {', '.join(known)}")
    return tuple(part for part in PARTS if part.name in names)
