"""The set-up of a learner process: environment, device, the rendezvous of all ranks, and stale compilation locks.

Everything here happens before the engine is built. Torch is imported inside the functions.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from cluster.core import files
from cluster.core.config import LearnerConfig

if TYPE_CHECKING:
    from torch.distributed import TCPStore

logger = logging.getLogger(__name__)

# --- Environment and numerics of the process.


def learner_environment(learner: LearnerConfig) -> dict[str, str]:
    """Return the environment variables with which a rank on a GPU starts. A rank on the CPU needs no others.

    An allocator configuration of the user's own is left alone.
    """
    if learner.gpus_per_rank == 0:
        return {}
    environment = {
        # AdamW runs on the CPU if it is offloaded. By default Ray would set 1 for any fraction of a CPU.
        "OMP_NUM_THREADS": str(cpu_threads(learner)),
        # NVIDIA's containers switch TF32 on with this variable, whatever a program asks for.
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        # Micro-batches have different widths. With segments of fixed sizes the memory would be fragmented.
        environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    return environment


def cpu_threads(learner: LearnerConfig) -> int:
    """Return the number of threads of one rank on the CPU. A rank on a GPU uses all of its CPUs."""
    if learner.gpus_per_rank == 0:
        return learner.threads_per_rank
    return max(learner.threads_per_rank, int(learner.cpus_per_rank))


def set_numerics(learner: LearnerConfig, dtype: str) -> None:
    """Set the threads of this process and the precision of its products, and warn of slow choices.

    Products of float32 matrices are float32 products on GPUs too. TF32 would keep 10 bits of each factor, and vLLM uses
    it in its attention only: sampler and learner would differ as much as in 16 bits.
    """
    import torch

    torch.set_num_threads(cpu_threads(learner))
    torch.set_float32_matmul_precision("highest")
    if learner.gpus_per_rank == 0:
        if dtype == "bfloat16" and not torch.cpu._is_avx512_bf16_supported():
            logger.warning("this CPU has no instructions for bfloat16: float32 is faster here, and exact")
        return
    if dtype == "float32":
        logger.warning(
            "model.dtype is float32, which is computed without TF32 and several times slower than bfloat16 on GPUs"
        )
    if learner.offload != "none" and cpu_threads(learner) == 1:
        logger.warning(
            "learner.offload runs AdamW with one CPU thread, which takes seconds per step: raise learner.cpus_per_rank"
        )


# --- Devices. They are checked before the ranks meet, because NCCL would hang or crash.


@dataclass(frozen=True, slots=True)
class RankDevice:
    """The device of one rank."""

    rank: int
    host: str
    device: str
    """"cpu", or the UUID of the GPU."""
    kind: str
    """The model of the GPU, or the number of threads on CPU."""

    def __str__(self) -> str:
        return f"rank {self.rank} is on {self.host}: {self.kind} ({self.device})"


def own_device(rank: int, on_gpu: bool, threads: int) -> RankDevice:
    """Return the device of this process.

    Raises:
        ValueError: if the process was given a GPU that torch does not see.
    """
    host = socket.gethostname()
    if not on_gpu:
        return RankDevice(rank, host, "cpu", f"{threads} thread(s)")
    import torch

    if not torch.cuda.is_available():
        raise ValueError(
            f"learner rank {rank} on {host} was given a GPU by Ray, but torch sees none: check the driver, "
            "CUDA_VISIBLE_DEVICES, and that the GPU build of torch is installed (make setup PLATFORM=gpu)"
        )
    properties = torch.cuda.get_device_properties(0)  # Ray shows each rank its own devices only
    return RankDevice(rank, host, str(properties.uuid), properties.name)


def refuse_shared_devices(devices: Sequence[RankDevice]) -> None:
    """Check that no two ranks share a GPU, which NCCL does not allow.

    Raises:
        ValueError: if two ranks share a GPU.
    """
    ranks: dict[tuple[str, str], list[int]] = defaultdict(list)
    for device in devices:
        if device.device != "cpu":
            ranks[device.host, device.device].append(device.rank)
    for (host, gpu), sharing in ranks.items():
        if len(sharing) > 1:
            raise ValueError(
                f"learner ranks {sharing} were given the same GPU ({gpu} on {host}): set "
                "learner.gpus_per_rank to 1, or lower learner.ranks"
            )


# --- Rendezvous. Rank 0 opens the store through which all ranks meet, and announces the port only afterwards. A port
# that is chosen first and opened later can be taken in between; this one cannot.


def open_store(address: str) -> TCPStore:
    """Open a store that listens at `address` on a free port (`store.port`)."""
    from torch.distributed import TCPStore

    listener = socket.create_server((address, 0))
    port = listener.getsockname()[1]
    return TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def join_store(address: str, port: int, timeout_s: float) -> TCPStore:
    """Connect to the store that rank 0 has opened."""
    from torch.distributed import TCPStore

    return TCPStore(
        address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout_s)
    )


def join_ranks(
    store: TCPStore,
    rank: int,
    ranks: int,
    *,
    on_gpu: bool,
    meet_timeout_s: float,
    collective_timeout_s: float,
) -> None:
    """Create the process group of all ranks for torch and DeepSpeed. Called once per process.

    Raises:
        TimeoutError: if some ranks did not arrive; the message names them.
    """
    import deepspeed
    import torch

    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": "0",  # Ray shows each rank its own devices only
        "MASTER_ADDR": store.host,
        "MASTER_PORT": str(store.port),
    }
    meet(store, rank, ranks, meet_timeout_s)
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=collective_timeout_s),
        device_id=torch.device("cuda", 0) if on_gpu and ranks > 1 else None,
    )
    deepspeed.init_distributed("nccl" if on_gpu else "gloo", verbose=False)


def meet(store: TCPStore, rank: int, ranks: int, timeout_s: float) -> None:
    """Wait until all ranks have arrived at `store`.

    Raises:
        TimeoutError: if some ranks did not arrive; the message names them.
    """
    from torch.distributed import DistStoreError

    store.set(f"arrived/{rank}", "")
    arrivals = [f"arrived/{other}" for other in range(ranks)]
    try:
        store.wait(arrivals, timedelta(seconds=timeout_s))
    except DistStoreError:
        missing = [other for other, key in enumerate(arrivals) if not store.check([key])]
        raise TimeoutError(
            f"learner rank(s) {missing} did not arrive at the rendezvous at {store.host}:{store.port} within "
            f"{timeout_s:g} s; see logs/learner-*.log in the run directory, or raise learner.start_timeout_s"
        ) from None


# --- Compilation locks. DeepSpeed compiles an operator at its first start on a machine, through torch, which keeps a
# file `lock` beside the operator during the compilation. If the compilation is killed, the lock stays, and every later
# start would wait for it forever.

STALE_AFTER_S = 60.0
"""The age at which a lock that no process of this machine holds counts as stale.

A younger lock may belong to another machine that shares the folder. A compilation takes less than this."""


def operator_folder() -> Path:
    """Return the folder in which torch compiles the operator that DeepSpeed needs on CPU."""
    from torch.utils.cpp_extension import _get_build_directory

    return Path(_get_build_directory("deepspeed_shm_comm", verbose=False))


def remove_stale_lock(folder: Path, stale_after_s: float = STALE_AFTER_S) -> None:
    """Remove a stale lock from `folder`. Returns when there is no lock, or one whose owner is alive, at the latest
    `stale_after_s` after the lock was created."""
    lock = folder / "lock"
    while (age_s := _age_s(lock)) is not None and not _is_held(lock):
        if age_s > stale_after_s:
            _remove(lock, stale_after_s)
        else:
            logger.info("%s belongs to no process of this machine; waiting until it counts as stale", lock)
            time.sleep(min(5.0, stale_after_s - age_s + 0.1))


def _remove(lock: Path, stale_after_s: float) -> None:
    """Remove `lock` if it is still stale. One process does so at a time, because after the first removal the lock may
    belong to a new compilation."""
    with open(lock.with_name("lock.removal"), "w") as guard:
        files.lock(guard)
        age_s = _age_s(lock)
        if age_s is not None and age_s > stale_after_s and not _is_held(lock):
            logger.warning("removing %s, %.0f s old: its compilation has been killed", lock, age_s)
            lock.unlink(missing_ok=True)


def _age_s(lock: Path) -> float | None:
    try:
        return time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return None


def _is_held(lock: Path) -> bool:
    """Return True if a process of this machine has the file open, as torch does. Other users' processes are not
    visible."""
    name = str(lock.resolve())
    for process in psutil.process_iter():
        try:
            descriptors = os.listdir(f"/proc/{process.pid}/fd")
            if any(os.readlink(f"/proc/{process.pid}/fd/{number}") == name for number in descriptors):
                return True
        except OSError:  # it ended, or is another user's
            continue
    return False
