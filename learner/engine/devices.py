"""Where each learner rank computes. Found out, and checked, before the ranks meet: NCCL would wait or crash."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RankDevice:
    """The device of one rank."""

    rank: int
    host: str
    device: str
    """"cpu", or what the GPU's maker calls this very piece (its UUID)."""
    kind: str
    """The GPU's model, or how many threads compute."""

    def __str__(self) -> str:
        return f"rank {self.rank} is on {self.host}: {self.kind} ({self.device})"


def own_device(rank: int, on_gpu: bool, threads: int) -> RankDevice:
    """Where this process computes.

    Raises:
        ValueError: it was given a GPU, and sees none.
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


def refuse_shared_devices(places: Sequence[RankDevice]) -> None:
    """Raises:
    ValueError: two ranks have one GPU, which NCCL does not allow.
    """
    ranks: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place in places:
        if place.device != "cpu":
            ranks[place.host, place.device].append(place.rank)
    for (host, device), sharing in ranks.items():
        if len(sharing) > 1:
            raise ValueError(
                f"learner ranks {sharing} were given the same GPU ({device} on {host}): set "
                "learner.gpus_per_rank to 1, or lower learner.ranks"
            )
