"""Memory of one process that other processes of the same device map: the first one writes, the others read.

    memory = allocate(size, device)             # in the process that owns it
    memory.handle                               # a text, which the other processes get in any way
    mapped = open_memory(handle, size, device)  # in each of them
    mapped.content                              # uint8 [size], the same bytes

No name and no file is left behind, even by processes that are killed. On the CPU the memory is an anonymous file, which
others open through the owner's descriptor. On a GPU it comes from the driver and not from torch's allocator: torch may
use segments that can be extended, which other processes cannot map in every container, and it would keep memory that it
has shared for as long as a reader that was killed does not return it.
"""

from __future__ import annotations

import base64
import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

_GPU_UNIT = 2 * 2**20
"""CUDA takes allocations of this size or a multiple from nothing else. Smaller ones may have neighbors, which would be
shared with them."""
_HANDLE_BYTES = 64
"""The size of CUDA's handle (`CUDA_IPC_HANDLE_SIZE`)."""
_SHARED_WITH_PEERS = 1
"""`cudaIpcMemLazyEnablePeerAccess`, the only flag that there is."""


class SharedMemory(Protocol):
    """The memory in one process."""

    content: torch.Tensor
    """uint8 [bytes]."""
    handle: str

    def close(self) -> None:
        """Give up the memory, or the mapping of it. `content` must not be used any more."""


def allocate(size: int, device: torch.device) -> SharedMemory:
    """Return new memory of `size` bytes on `device`.

    Raises:
        RuntimeError: if there is not enough memory.
    """
    if device.type == "cuda":
        return _GpuMemory.allocated(size, device)
    return _HostMemory.allocated(size)


def open_memory(handle: str, size: int, device: torch.device) -> SharedMemory:
    """Return the memory of `size` bytes that another process has allocated on the same device.

    Raises:
        RuntimeError: if this process cannot map it.
    """
    if device.type == "cuda":
        return _GpuMemory.opened(handle, size, device)
    return _HostMemory.opened(handle, size)


class _HostMemory:
    """Memory of an anonymous file. Its handle is the owner's process id, its descriptor, and the file's number."""

    def __init__(self, descriptor: int, size: int, handle: str) -> None:
        import torch

        self._descriptor = descriptor
        self.handle = handle
        self.content = torch.frombuffer(mmap.mmap(descriptor, size), dtype=torch.uint8)

    @classmethod
    def allocated(cls, size: int) -> _HostMemory:
        descriptor = os.memfd_create("weights")
        os.ftruncate(descriptor, size)
        return cls(descriptor, size, f"{os.getpid()}/{descriptor}/{os.fstat(descriptor).st_ino}")

    @classmethod
    def opened(cls, handle: str, size: int) -> _HostMemory:
        owner, number, inode = handle.split("/")
        try:
            descriptor = os.open(f"/proc/{owner}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise RuntimeError(
                f"the memory of process {owner} cannot be opened here ({error.strerror}): both processes must belong "
                "to one user and one container"
            ) from error
        found = os.fstat(descriptor)
        if (found.st_ino, found.st_size) != (int(inode), size):
            os.close(descriptor)
            raise RuntimeError(
                f"descriptor {number} of process {owner} is another file than the one it shares"
            )
        return cls(descriptor, size, handle)

    def close(self) -> None:
        del self.content  # the mapping ends with the last tensor of it
        os.close(self._descriptor)


class _GpuMemory:
    """Memory that CUDA's runtime has allocated or mapped. Its handle is CUDA's, in base64."""

    def __init__(self, pointer: int, size: int, device: torch.device, handle: str, owned: bool) -> None:
        import torch

        self._pointer = pointer
        self._device = device
        self._owned = owned
        self.handle = handle
        self.content = torch.as_tensor(_Bytes(pointer, size), device=device)

    @classmethod
    def allocated(cls, size: int, device: torch.device) -> _GpuMemory:
        import torch

        torch.cuda.empty_cache()  # the driver has only what torch does not keep
        whole = -(-size // _GPU_UNIT) * _GPU_UNIT
        with _runtime(device) as runtime:
            pointer = _value(runtime, runtime.cudaMalloc(whole), f"allocating {whole >> 20} MiB on {device}")
            handle = _value(runtime, runtime.cudaIpcGetMemHandle(pointer), f"sharing memory of {device}")
        content = ctypes.string_at(handle.getPtr(), _HANDLE_BYTES)
        return cls(pointer, size, device, base64.b64encode(content).decode(), owned=True)

    @classmethod
    def opened(cls, handle: str, size: int, device: torch.device) -> _GpuMemory:
        doing = f"mapping another process's memory of {device}"
        with _runtime(device) as runtime:
            native = runtime.cudaIpcMemHandle_t()
            ctypes.memmove(native.getPtr(), base64.b64decode(handle), _HANDLE_BYTES)
            pointer = _value(runtime, runtime.cudaIpcOpenMemHandle(native, _SHARED_WITH_PEERS), doing)
        return cls(pointer, size, device, handle, owned=False)

    def close(self) -> None:
        del self.content
        with _runtime(self._device) as runtime:
            end = runtime.cudaFree if self._owned else runtime.cudaIpcCloseMemHandle
            _value(runtime, end(self._pointer), f"giving up shared memory of {self._device}")


class _Bytes:
    """Bytes of a GPU, in the form in which torch takes memory that it has not allocated."""

    def __init__(self, pointer: int, size: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (pointer, False),
            "strides": None,
            "version": 3,
        }


@contextmanager
def _runtime(device: torch.device) -> Iterator[Any]:
    """Provide CUDA's runtime, whose calls in this block and thread are for `device`."""
    import torch

    runtime: Any = import_module("cuda.bindings.runtime")  # comes with torch's build for GPUs
    with torch.cuda.device(device):
        _value(runtime, runtime.cudaSetDevice(torch.cuda.current_device()), f"choosing {device}")
        yield runtime


def _value(runtime: Any, result: tuple[Any, ...], doing: str) -> Any:
    """Return the value of a call of CUDA's runtime, which returns its error and then a value.

    Raises:
        RuntimeError: if it failed.
    """
    error, *values = result
    if int(error) != 0:
        _, text = runtime.cudaGetErrorString(error)
        raise RuntimeError(f"{doing} failed: {text.decode()} (CUDA error {int(error)})")
    return values[0] if values else None
