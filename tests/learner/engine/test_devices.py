"""No two ranks share a GPU."""

from __future__ import annotations

import pytest

from learner.engine.devices import RankDevice, own_device, refuse_shared_devices


def gpu(rank: int, host: str, device: str) -> RankDevice:
    return RankDevice(rank, host, device, "NVIDIA H200")


def test_ranks_with_gpus_of_their_own() -> None:
    refuse_shared_devices([gpu(0, "a", "GPU-1"), gpu(1, "a", "GPU-2"), gpu(2, "b", "GPU-1")])


def test_cpus_may_be_shared() -> None:
    place = own_device(0, on_gpu=False, threads=2)
    assert "2 thread(s) (cpu)" in str(place)
    refuse_shared_devices([place, RankDevice(1, place.host, "cpu", "2 thread(s)")])


def test_two_ranks_with_one_gpu_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ranks \[0, 2\] were given the same GPU \(GPU-1 on a\)"):
        refuse_shared_devices([gpu(0, "a", "GPU-1"), gpu(1, "a", "GPU-2"), gpu(2, "a", "GPU-1")])


def test_a_gpu_that_torch_does_not_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"rank 3 on .* torch sees none"):
        own_device(3, on_gpu=True, threads=1)
