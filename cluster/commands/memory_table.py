"""The table of a run's estimated memory, as `launch.py check` prints it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from cluster.configuration.machine import Machine
from cluster.configuration.memory import (
    GIB,
    Memory,
    copied_bytes,
    engine_memory,
    exported_bytes,
    learner_memory,
    offloaded_bytes,
    shared_memory,
)
from cluster.configuration.memory_checks import cache_tokens, learner_limit
from cluster.configuration.model_shape import ModelShape, UnknownShapeError, find_shape
from cluster.core.config import RunConfig

SMALLEST_SHOWN = 0.005
"""The smallest part that is listed, as a fraction of its process."""


def print_memory(config: RunConfig, machine: Machine | None) -> None:
    """Print the estimate of the run's memory, or the reason why there is no estimate."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        shape = find_shape(config)
    except UnknownShapeError as error:
        console.print(f"memory: not estimated for {config.model.source}, because {error}", markup=False)
        return
    console.print(memory_table(config, shape, machine))


def memory_table(config: RunConfig, shape: ModelShape, machine: Machine | None) -> Table:
    """Return one row for each kind of process: its memory, the memory available to it, and what uses it.

    Args:
        shape: The shape of the run's model.
        machine: The GPUs of the run, or None if they are not known or not used.
    """
    where = f" on {machine}" if machine else ""
    table = Table(
        title=f"memory per process, estimated: {shape.parameters / 1e6:,.0f} million parameters, "
        f"{config.model.dtype}{where}",
        title_justify="left",
        title_style="",
        box=None,
        pad_edge=False,
        header_style="cyan",
        padding=(0, 2, 0, 0),
    )
    table.add_column("process")
    table.add_column("GiB", justify="right")
    table.add_column("of", justify="right")
    table.add_column("parts", overflow="fold")
    gpu_gib = machine.memory_gib if machine else None
    limit = learner_limit(config, gpu_gib) if gpu_gib and config.learner.gpus_per_rank else None
    _add(table, f"{config.learner.ranks} × learner rank", learner_memory(config, shape), limit)
    if offloaded := offloaded_bytes(config, shape):
        table.add_row("  in host memory", _gib(offloaded), "", "offloaded state")
    if copied := copied_bytes(config, shape):
        exported = exported_bytes(config, shape)
        parts = f"pinned copy of the published weights {_gib(copied)}, export of the model {_gib(exported)}"
        table.add_row("  rank 0 in host memory", _gib(copied + exported), "", parts)
    _add_engine(table, config, shape, gpu_gib)
    _add(table, "/dev/shm of a node", shared_memory(config, shape), None)
    return table


def _add_engine(table: Table, config: RunConfig, shape: ModelShape, gpu_gib: float | None) -> None:
    rollout, memory = config.rollout, engine_memory(config, shape)
    size = rollout.tensor_parallel_size
    name = f"{rollout.workers} × engine" + (f" (each of {size} GPUs)" if size > 1 else "")
    if not gpu_gib or not rollout.gpus_per_worker:
        _add(table, name, memory, None)
        return
    tokens = cache_tokens(config, shape, gpu_gib)
    budget = rollout.gpu_memory_utilization * gpu_gib * GIB
    sequences = tokens / config.model.max_context_tokens
    cache = f"key-value cache {_gib(budget - memory.total)} ({sequences:.0f} sequences of full length)"
    table.add_row(name, _gib(budget), _gib(budget), f"{cache}, {_parts(memory)}")


def _add(table: Table, name: str, memory: Memory, limit: float | None) -> None:
    table.add_row(name, _gib(memory.total), _gib(limit) if limit is not None else "", _parts(memory))


def _parts(memory: Memory) -> str:
    """Return the parts with their sizes, the largest first."""
    largest_first = sorted(memory.parts, key=lambda part: -part.size)
    shown = [part for part in largest_first if part.size >= SMALLEST_SHOWN * memory.total]
    return ", ".join(f"{part.name} {_gib(part.size)}" for part in shown)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}" if size >= 0.05 * GIB else f"{size / GIB:.2f}"
