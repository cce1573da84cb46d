"""The devices of the ranks, their rendezvous, and stale compilation locks."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pytest
import torch
from torch.utils.file_baton import FileBaton

from cluster.core.config import LearnerConfig
from cluster.core.network import interface_of, use_interface_of
from learner.engine.process_setup import (
    RankDevice,
    cpu_threads,
    join_store,
    learner_environment,
    meet,
    open_store,
    operator_folder,
    own_device,
    refuse_shared_devices,
    remove_stale_lock,
    set_numerics,
)

# --- Environment and numerics.

ON_GPU = {"gpus_per_rank": 1}
ALLOCATOR = "PYTORCH_ALLOC_CONF"


def test_on_cpu_the_environment_is_that_of_all_cpu_actors() -> None:
    assert learner_environment(LearnerConfig()) == {}


@pytest.mark.parametrize(
    ("cpus", "threads", "expected"), [(1, 1, 1), (4, 1, 4), (4.9, 1, 4), (0.5, 1, 1), (2, 6, 6), (8, 6, 8)]
)
def test_on_a_gpu_an_offloaded_optimizer_uses_all_cpus_of_the_rank(
    cpus: float, threads: int, expected: int
) -> None:
    learner = LearnerConfig.model_validate(ON_GPU | {"cpus_per_rank": cpus, "threads_per_rank": threads})
    assert learner_environment(learner)["OMP_NUM_THREADS"] == str(expected)
    assert cpu_threads(LearnerConfig(cpus_per_rank=cpus, threads_per_rank=threads)) == threads


def test_on_a_gpu_memory_does_not_fragment_and_tf32_is_not_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ALLOCATOR, "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    environment = learner_environment(LearnerConfig.model_validate(ON_GPU))
    assert environment[ALLOCATOR] == "expandable_segments:True"
    assert environment["TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"] == "0"


@pytest.mark.parametrize("name", [ALLOCATOR, "PYTORCH_CUDA_ALLOC_CONF"])
def test_an_allocator_that_the_user_configured_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The older name comes first in torch."""
    monkeypatch.delenv(ALLOCATOR, raising=False)
    monkeypatch.setenv(name, "max_split_size_mb:128")
    assert ALLOCATOR not in learner_environment(LearnerConfig.model_validate(ON_GPU))


def test_torch_knows_the_allocators_setting() -> None:
    """An unknown name would be ignored, at least without a GPU; a known one refuses a value that it cannot read."""
    configure = torch._C._accelerator_setAllocatorSettings
    with pytest.raises(ValueError, match="'True' or 'False'"):
        configure("expandable_segments:perhaps")
    configure("expandable_segments:True")


@pytest.mark.parametrize(
    ("settings", "dtype", "warning"),
    [
        ({}, "float32", None),
        (ON_GPU, "bfloat16", None),
        (ON_GPU, "float32", "without TF32"),
        (ON_GPU | {"offload": "optimizer"}, "bfloat16", "raise learner.cpus_per_rank"),
        (ON_GPU | {"offload": "optimizer", "cpus_per_rank": 4}, "bfloat16", None),
    ],
)
def test_float32_is_exact_everywhere_and_slow_choices_are_named(
    settings: dict[str, Any], dtype: str, warning: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """This shows the settings of torch, and not a product on a GPU."""
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    try:
        torch.set_float32_matmul_precision("high")
        with caplog.at_level(logging.WARNING, "learner.engine.process_setup"):
            set_numerics(LearnerConfig.model_validate({"zero_stage": 2} | settings), dtype)
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
    assert len(caplog.messages) == (warning is not None)
    assert all(str(warning) in message for message in caplog.messages)


# --- Devices.


def gpu(rank: int, host: str, device: str) -> RankDevice:
    return RankDevice(rank, host, device, "NVIDIA H200")


def test_ranks_with_gpus_of_their_own() -> None:
    refuse_shared_devices([gpu(0, "a", "GPU-1"), gpu(1, "a", "GPU-2"), gpu(2, "b", "GPU-1")])


def test_cpus_may_be_shared() -> None:
    device = own_device(0, on_gpu=False, threads=2)
    assert "2 thread(s) (cpu)" in str(device)
    refuse_shared_devices([device, RankDevice(1, device.host, "cpu", "2 thread(s)")])


def test_two_ranks_with_one_gpu_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ranks \[0, 2\] were given the same GPU \(GPU-1 on a\)"):
        refuse_shared_devices([gpu(0, "a", "GPU-1"), gpu(1, "a", "GPU-2"), gpu(2, "a", "GPU-1")])


def test_a_gpu_that_torch_does_not_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"rank 3 on .* torch sees none"):
        own_device(3, on_gpu=True, threads=1)


# --- Rendezvous.


ADDRESS = "127.0.0.1"


def test_the_port_is_taken_from_the_moment_it_is_known() -> None:
    """There is no time between choosing it and using it: no other process can open it, so only ranks meet there."""
    store = open_store(ADDRESS)
    with pytest.raises(OSError, match="in use"):
        socket.create_server((ADDRESS, store.port))
    other = join_store(ADDRESS, store.port, timeout_s=10)
    with ThreadPoolExecutor(2) as pool:
        for arrival in [pool.submit(meet, each, rank, 2, 10) for rank, each in enumerate([store, other])]:
            arrival.result(timeout=20)


def test_a_port_that_is_busy_is_never_chosen() -> None:
    stores = [open_store(ADDRESS) for _ in range(20)]
    assert len({store.port for store in stores}) == 20


def test_it_listens_at_this_address_alone() -> None:
    store = open_store(ADDRESS)
    process = psutil.Process()
    (listening,) = [
        connection.laddr
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == store.port
    ]
    assert listening.ip == ADDRESS


def test_who_does_not_come_is_named() -> None:
    store = open_store(ADDRESS)
    store.set("arrived/2", "")
    with pytest.raises(TimeoutError, match=r"rank\(s\) \[1, 3\] did not arrive .* within 0\.2 s"):
        meet(store, 0, 4, timeout_s=0.2)


def test_gloo_and_nccl_talk_over_the_interface_with_the_nodes_address() -> None:
    loopback = interface_of(ADDRESS)
    assert loopback is not None
    assert use_interface_of(ADDRESS, {}) == {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}


def test_what_was_set_stays() -> None:
    assert use_interface_of(ADDRESS, {"GLOO_SOCKET_IFNAME": "eth7"}).keys() == {"NCCL_SOCKET_IFNAME"}


def test_an_address_that_is_not_this_machines_changes_nothing() -> None:
    """As in a container whose address is translated."""
    with patch("psutil.net_if_addrs", return_value={}):
        assert use_interface_of("192.0.2.1", {}) == {}


# --- Compilation locks.


OWNER = """
import sys, time
from torch.utils.file_baton import FileBaton
assert FileBaton(sys.argv[1]).try_acquire()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that compiles, as torch would."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def age(lock: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(lock, (then, then))


def test_a_lock_that_is_held_stays_however_old(tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    age(tmp_path / "lock", 10_000)
    remove_stale_lock(tmp_path)
    assert (tmp_path / "lock").exists()


def test_after_its_owner_was_killed_it_is_removed_and_can_be_taken(
    tmp_path: Path, owner: subprocess.Popen[str]
) -> None:
    owner.kill()
    owner.wait()
    age(tmp_path / "lock", 10_000)
    remove_stale_lock(tmp_path)
    assert FileBaton(str(tmp_path / "lock")).try_acquire()


def test_a_young_one_is_waited_for_until_it_is_surely_stale(tmp_path: Path) -> None:
    """It may be another machine's, whose processes are not seen from here."""
    lock = tmp_path / "lock"
    lock.touch()
    remove_stale_lock(tmp_path, stale_after_s=0.5)
    assert not lock.exists()


def test_several_may_find_it_at_once(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    age(lock, 10_000)
    with ThreadPoolExecutor(8) as pool:
        for each in [pool.submit(remove_stale_lock, tmp_path) for _ in range(8)]:
            each.result(timeout=30)
    assert not lock.exists()


def test_without_a_lock_nothing_happens(tmp_path: Path) -> None:
    remove_stale_lock(tmp_path / "never-built")


def test_it_is_looked_for_where_torch_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert operator_folder().parent == tmp_path
