"""Shared memory has the same bytes in all processes, and nothing of it stays behind.

CUDA cannot run here. A fake runtime shows which calls are made, with which arguments, and in which order; that CUDA
then maps the memory, and that torch takes it as a tensor, is not shown. The names are those of cuda-bindings 13.4.
"""

from __future__ import annotations

import base64
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster.core import shared_memory
from cluster.core.shared_memory import allocate, open_memory

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
READER = """
import sys, torch
from cluster.core.shared_memory import open_memory
memory = open_memory(sys.argv[1], int(sys.argv[2]), torch.device("cpu"))
print(int(memory.content.to(torch.int64).sum()))
memory.content[0] = 7
"""


def test_another_process_has_the_same_bytes() -> None:
    memory = allocate(1000, CPU)
    memory.content[:] = torch.arange(1000).to(torch.uint8)
    expected = int(memory.content.to(torch.int64).sum())
    found = subprocess.run(
        [sys.executable, "-c", READER, memory.handle, "1000"], check=True, capture_output=True, text=True
    )
    assert int(found.stdout) == expected
    assert memory.content[0] == 7, "it is the same memory, not a copy"
    memory.close()


def test_nothing_has_a_name_and_nothing_stays_open() -> None:
    """So nothing is left behind by processes that are killed either."""
    files, descriptors = set(os.listdir("/dev/shm")), len(os.listdir("/proc/self/fd"))
    memory = allocate(1000, CPU)
    other = open_memory(memory.handle, 1000, CPU)
    ours = {name for name in set(os.listdir("/dev/shm")) - files if "weights" in name}
    other.close()
    memory.close()
    assert not ours
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_mapping_lasts_longer_than_its_owner() -> None:
    memory = allocate(10, CPU)
    memory.content.fill_(3)
    other = open_memory(memory.handle, 10, CPU)
    memory.close()
    assert int(other.content.sum()) == 30


@pytest.mark.parametrize("changed", ["owner", "descriptor", "file", "size"])
def test_memory_that_is_not_there_is_one_line(changed: str, tmp_path: Path) -> None:
    memory = allocate(10, CPU)
    owner, descriptor, inode = memory.handle.split("/")
    with open(tmp_path / "other", "wb") as other:
        handles = {
            "owner": f"4194304/{descriptor}/{inode}",
            "descriptor": f"{owner}/{other.fileno()}/{inode}",
            "file": f"{owner}/{descriptor}/{int(inode) + 1}",
            "size": memory.handle,
        }
        with pytest.raises(RuntimeError, match=r"cannot be opened here|is another file") as refused:
            open_memory(handles[changed], 11 if changed == "size" else 10, CPU)
    assert "\n" not in str(refused.value)


class FakeRuntime:
    """CUDA's runtime, as cuda-bindings calls it: every function returns a tuple that begins with an error."""

    class cudaIpcMemHandle_t:
        def __init__(self) -> None:
            self.bytes = ctypes.create_string_buffer(64)

        def getPtr(self) -> int:
            return ctypes.addressof(self.bytes)

    def __init__(self, failing: str = "") -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._failing = failing

    def _answer(self, name: str, *arguments: Any, value: Any = ()) -> tuple[Any, ...]:
        self.calls.append((name, *arguments))
        return (2, None) if name == self._failing else (0, value) if value != () else (0,)

    def cudaSetDevice(self, index: int) -> tuple[Any, ...]:
        return self._answer("cudaSetDevice", index)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._answer("cudaMalloc", size, value=0xA000)

    def cudaIpcGetMemHandle(self, pointer: int) -> tuple[Any, ...]:
        handle = self.cudaIpcMemHandle_t()
        handle.bytes.raw = bytes(range(64))
        return self._answer("cudaIpcGetMemHandle", pointer, value=handle)

    def cudaIpcOpenMemHandle(self, handle: Any, flags: int) -> tuple[Any, ...]:
        return self._answer("cudaIpcOpenMemHandle", handle.bytes.raw, flags, value=0xB000)

    def cudaIpcCloseMemHandle(self, pointer: int) -> tuple[Any, ...]:
        return self._answer("cudaIpcCloseMemHandle", pointer)

    def cudaFree(self, pointer: int) -> tuple[Any, ...]:
        return self._answer("cudaFree", pointer)

    def cudaGetErrorString(self, error: int) -> tuple[Any, ...]:
        return 0, b"out of memory"


@contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    yield


def with_runtime(monkeypatch: pytest.MonkeyPatch, runtime: FakeRuntime) -> list[tuple[int, int]]:
    """Let the module find `runtime`. Return the list of the addresses and sizes that torch takes as tensors."""
    taken: list[tuple[int, int]] = []

    def as_tensor(source: Any, device: torch.device) -> torch.Tensor:
        described = source.__cuda_array_interface__
        assert (described["typestr"], described["version"]) == ("|u1", 3)
        taken.append((described["data"][0], described["shape"][0]))
        return torch.empty(described["shape"], dtype=torch.uint8)

    modules = {"cuda.bindings.runtime": runtime}
    monkeypatch.setattr(shared_memory, "import_module", modules.__getitem__)
    monkeypatch.setattr(torch, "as_tensor", as_tensor)
    monkeypatch.setattr(
        torch,
        "cuda",
        SimpleNamespace(device=on_device, current_device=lambda: 0, empty_cache=lambda: None),
    )
    return taken


def test_a_gpu_handle_travels_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = FakeRuntime()
    taken = with_runtime(monkeypatch, runtime)
    memory = allocate(3_000_000, GPU)
    assert base64.b64decode(memory.handle) == bytes(range(64))
    mapped = open_memory(memory.handle, 3_000_000, GPU)
    assert taken == [(0xA000, 3_000_000), (0xB000, 3_000_000)]
    mapped.close()
    memory.close()
    calls = [call for call in runtime.calls if call[0] != "cudaSetDevice"]
    assert calls == [
        ("cudaMalloc", 4 * 2**20),  # whole units, so that no other allocation is in them
        ("cudaIpcGetMemHandle", 0xA000),
        ("cudaIpcOpenMemHandle", bytes(range(64)), 1),
        ("cudaIpcCloseMemHandle", 0xB000),
        ("cudaFree", 0xA000),
    ]


@pytest.mark.parametrize("failing", ["cudaSetDevice", "cudaMalloc", "cudaIpcGetMemHandle"])
def test_an_error_of_cuda_is_one_line(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    with_runtime(monkeypatch, FakeRuntime(failing))
    with pytest.raises(
        RuntimeError, match=r"^\w.* of? ?.*failed: out of memory \(CUDA error 2\)$|failed: out of"
    ) as failure:
        allocate(10, GPU)
    assert "\n" not in str(failure.value)
    assert "cuda:0" in str(failure.value)


def test_memory_that_cannot_be_mapped_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with_runtime(monkeypatch, FakeRuntime("cudaIpcOpenMemHandle"))
    with pytest.raises(
        RuntimeError, match=r"^mapping another process's memory of cuda:0 failed: out of memory"
    ):
        open_memory(base64.b64encode(bytes(64)).decode(), 10, GPU)
