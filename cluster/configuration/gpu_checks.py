"""Check how the run divides GPUs among its actors: devices per actor, fractions, and sleeping engines. Pure.

A fraction such as 0.5 lets Ray put several actors on one GPU. Ray counts fractions and does not limit memory, so what
the actors on one GPU use is checked here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from cluster.core.config import RunConfig
from cluster.core.problem import Problem
from cluster.core.weight_transport import WEIGHT_TRANSPORTS

_ROUNDING = 1e-6


def check_gpus(config: RunConfig) -> Iterator[Problem]:
    """Report GPUs per actor that cannot work, and GPUs that are shared by more than fits."""
    yield from _check_engine_devices(config)
    yield from _check_rank_device(config)
    yield from _check_sleep(config)
    yield from _check_shared_memory(config)
    yield from _check_shared_channel(config)
    yield from _check_shared_devices(config)


def engines_on_one_gpu(config: RunConfig, beside_learner: bool) -> int:
    """Return the largest number of engines that Ray may put on one GPU, alone or beside a learner rank."""
    rollout = config.rollout
    if not 0 < rollout.gpus_per_worker < 1:
        return 0 if beside_learner else min(1, math.ceil(rollout.gpus_per_worker))
    rank = config.learner.gpus_per_rank
    if beside_learner and not 0 < rank < 1:
        return 0
    free = 1 - rank if beside_learner else 1.0
    most = rollout.max_workers or rollout.workers
    return min(most, math.floor(free / rollout.gpus_per_worker + _ROUNDING))


def _check_engine_devices(config: RunConfig) -> Iterator[Problem]:
    """Report an engine whose number of GPUs is not the number that it computes on."""
    gpus, size = config.rollout.gpus_per_worker, config.rollout.tensor_parallel_size
    if gpus == 0 or (gpus < 1 and size == 1) or gpus == size:
        return
    if gpus < 1:
        what = f"an engine over rollout.tensor_parallel_size = {size} GPUs cannot run on {gpus:g} of a GPU"
    else:
        what = f"Ray gives each engine {gpus:g} GPUs, but rollout.tensor_parallel_size = {size} uses {size}"
    yield Problem(
        "rollout.gpus_per_worker", what, f"set it to {size}, or change rollout.tensor_parallel_size"
    )


def _check_rank_device(config: RunConfig) -> Iterator[Problem]:
    """Report a rank with several GPUs, and ranks that could share one."""
    gpus, ranks = config.learner.gpus_per_rank, config.learner.ranks
    if gpus > 1:
        yield Problem(
            "learner.gpus_per_rank",
            f"a rank computes on one GPU, so the others of its {gpus:g} would be idle",
            "set it to 1, and raise learner.ranks",
        )
    elif ranks > 1 and 0 < gpus <= 0.5:
        yield Problem(
            "learner.gpus_per_rank",
            f"with {gpus:g}, two ranks share a GPU, which NCCL does not allow",
            "set it to 1 or, to share each GPU with an engine, above 0.5; or set learner.ranks to 1",
        )


def _check_sleep(config: RunConfig) -> Iterator[Problem]:
    """Report engines that sleep although the learner needs none of their memory."""
    if not config.rollout.sleep_while_learning:
        return
    engine, rank = config.rollout.gpus_per_worker, config.learner.gpus_per_rank
    if engine == 0 or rank == 0:
        yield Problem(
            "rollout.sleep_while_learning",
            f"rollout.gpus_per_worker = {engine:g} and learner.gpus_per_rank = {rank:g}: only engines that share a GPU "
            "with the learner can sleep",
            "leave it out, or set both to 0.5",
        )
    elif engines_on_one_gpu(config, beside_learner=True) == 0:
        yield Problem(
            "rollout.sleep_while_learning",
            f"no engine shares a GPU with the learner (rollout.gpus_per_worker = {engine:g}, learner.gpus_per_rank = "
            f"{rank:g})",
            "leave it out, or lower both so that their sum is at most 1",
        )


def _check_shared_memory(config: RunConfig) -> Iterator[Problem]:
    """Report engines that together use more of a GPU's memory than there is, or than the learner leaves them."""
    rollout, rank = config.rollout, config.learner.gpus_per_rank
    used = rollout.gpu_memory_utilization
    alone, beside = (engines_on_one_gpu(config, beside_learner=learner) for learner in (False, True))
    if alone > 1 and alone * used > 1 + _ROUNDING:
        yield Problem(
            "rollout.gpu_memory_utilization",
            f"up to {alone} engines share a GPU (rollout.gpus_per_worker = {rollout.gpus_per_worker:g}), and each uses "
            f"{used:g} of its memory",
            f"lower it to {_rounded_down(1 / alone)}, or raise rollout.gpus_per_worker",
        )
    elif beside and not rollout.sleep_while_learning and beside * used > 1 - rank + _ROUNDING:
        engines = "an engine uses" if beside == 1 else f"{beside} engines use"
        yield Problem(
            "rollout.gpu_memory_utilization",
            f"{engines} {beside * used:g} of the memory of a GPU on which learner.gpus_per_rank = {rank:g} belongs to "
            "the learner",
            f"lower it to {_rounded_down((1 - rank) / beside)}, or set rollout.sleep_while_learning to true",
        )


def _check_shared_channel(config: RunConfig) -> Iterator[Problem]:
    """Report a transport between processes of which two may be on the same GPU."""
    transport = WEIGHT_TRANSPORTS.get(config.rollout.weight_transport)
    if transport is None or not transport.joins_processes or config.rollout.sleep_while_learning:
        return  # sleeping engines have a message of their own
    beside = engines_on_one_gpu(config, beside_learner=True)
    if beside or engines_on_one_gpu(config, beside_learner=False) > 1:
        others = "the learner" if beside else "other engines"
        yield Problem(
            "rollout.weight_transport",
            f"{config.rollout.weight_transport} cannot send weights to engines that share a GPU with {others}, because "
            "NCCL needs one GPU per process",
            f"set it to {'pull or ipc' if beside else 'pull'}, or set rollout.gpus_per_worker to 1",
        )


def _check_shared_devices(config: RunConfig) -> Iterator[Problem]:
    """Report a transport through the memory of a device between processes that are on different ones."""
    transport = WEIGHT_TRANSPORTS.get(config.rollout.weight_transport)
    if transport is None or not transport.shares_devices:
        return
    rollout, learner, name = config.rollout, config.learner, config.rollout.weight_transport
    labels = [config.cluster.node_labels.get(role, {}) for role in ("learner", "rollout")]
    if any(labels[0][key] != labels[1][key] for key in labels[0].keys() & labels[1].keys()):
        yield Problem(
            "rollout.weight_transport",
            f"{name} cannot send weights from one node to another, and cluster.node_labels separates learner and "
            "engines",
            "set it to pull or broadcast",
        )
        return
    if not (rollout.gpus_per_worker and learner.gpus_per_rank):
        return  # on the CPU, or a mixture, which has a message of its own
    most = rollout.max_workers or rollout.workers
    beside = engines_on_one_gpu(config, beside_learner=True)
    if not beside:
        yield Problem(
            "rollout.weight_transport",
            f"{name} needs engines that share a GPU with the learner (rollout.gpus_per_worker = "
            f"{rollout.gpus_per_worker:g}, learner.gpus_per_rank = {learner.gpus_per_rank:g})",
            "set it to broadcast or pull, or lower both so that their sum is at most 1",
        )
    elif most > learner.ranks * beside:
        yield Problem(
            "rollout.weight_transport",
            f"{name} needs a learner rank on the GPU of every engine, and only {learner.ranks * beside} of {most} "
            f"engines fit beside {learner.ranks} rank(s)",
            f"set it to pull, or allow {learner.ranks * beside} workers",
        )


def _rounded_down(value: float) -> str:
    return f"{math.floor(value * 100 + _ROUNDING) / 100:g}"
