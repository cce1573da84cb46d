"""Copies tensors of the host to a GPU through pinned memory.

The driver copies from ordinary memory through a small pinned buffer of its own, one piece after the other. Two larger
buffers of ours let the processor fill one while the GPU empties the other.
"""

from __future__ import annotations

import torch

STAGING_BYTES = 32 * 2**20


class PinnedStaging:
    """Two pinned buffers, used in turn. `pin` is False in tests without a GPU."""

    def __init__(self, device: torch.device, size: int = STAGING_BYTES, pin: bool = True) -> None:
        self._device = device
        self._buffers = [torch.empty(size, dtype=torch.uint8, pin_memory=pin) for _ in range(2)]
        self._emptied: list[torch.cuda.Event | None] = [None, None]
        """Recorded behind the last copy out of each buffer."""
        self._turn = 0

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy of a contiguous tensor of the host on the device.

        The copy may still be under way on the current stream, but `tensor` is not needed any more.
        """
        target = torch.empty_like(tensor, device=self._device)
        source, destination = (one.view(-1).view(torch.uint8) for one in (tensor, target))
        size = len(self._buffers[0])
        for begin in range(0, len(source), size):
            piece = source[begin : begin + size]
            buffer = self._next_buffer()[: len(piece)]
            buffer.copy_(piece)
            destination[begin : begin + size].copy_(buffer, non_blocking=True)
            self._note_copy()
        return target

    def _next_buffer(self) -> torch.Tensor:
        """Return the buffer whose turn it is, once it is empty."""
        self._turn = 1 - self._turn
        emptied = self._emptied[self._turn]
        if emptied is not None:
            emptied.synchronize()
        return self._buffers[self._turn]

    def _note_copy(self) -> None:
        if self._device.type == "cuda":
            self._emptied[self._turn] = torch.cuda.current_stream(self._device).record_event()
