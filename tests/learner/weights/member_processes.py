"""Processes of engines, without vLLM: each takes versions from a weight transport's source, one after the other."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from cluster.core.types import WeightLayout

START_S = 300.0
"""On a busy machine a process takes minutes to import its libraries."""
ANSWER_S = 300.0


class Member:
    """One process, from this side."""

    def __init__(self) -> None:
        self._pipe, other = get_context("spawn").Pipe()
        self._process = get_context("spawn").Process(target=_run, args=(other,), daemon=True)
        self._process.start()
        other.close()

    def wait(self) -> None:
        """Wait until the process is up."""
        assert self._pipe.poll(START_S), "the process did not start"
        self._pipe.recv()

    def begin(
        self, arguments: Sequence[Any], layout: Sequence[WeightLayout], dies_at: int | None = None
    ) -> None:
        """Have it take a version, and kill itself when it has copied `dies_at` pieces."""
        self._pipe.send((arguments, [tuple(one) for one in layout], dies_at))

    def result(self) -> dict[str, Tensor] | str:
        """Return the tensors that it took, or the failure."""
        assert self._pipe.poll(ANSWER_S), "the process did not answer"
        taken = self._pipe.recv()
        if isinstance(taken, str):
            return taken
        return {
            name: torch.tensor(values, dtype=getattr(torch, dtype)).view(shape)
            for name, (dtype, shape, values) in taken.items()
        }

    def end(self) -> None:
        self._process.kill()
        self._process.join()


@contextmanager
def members(count: int) -> Iterator[list[Member]]:
    """Provide new processes. None of them is left afterwards."""
    started = [Member() for _ in range(count)]
    try:
        for member in started:
            member.wait()
        yield started
    finally:
        for member in started:
            member.end()


def _run(pipe: Connection) -> None:
    from rollout.weights.ipc import SharedSource

    torch.set_num_threads(1)
    source = SharedSource(torch.device("cpu"), rank=0)
    pipe.send("up")
    while True:
        arguments, layout, dies_at = pipe.recv()
        if dies_at is not None:
            _die_at(dies_at)
        try:
            taken = dict(source.tensors(arguments, [WeightLayout(*one) for one in layout]))
        except source.failures as failure:
            source.close()
            pipe.send(str(failure))
        else:
            pipe.send({name: _plain(tensor) for name, tensor in taken.items()})


def _plain(tensor: Tensor) -> tuple[str, list[int], list[Any]]:
    """Return type, shape and values of a tensor. (torch would send its memory through a file in /dev/shm.)"""
    return str(tensor.dtype).removeprefix("torch."), list(tensor.shape), tensor.view(-1).tolist()


def _die_at(piece: int) -> None:
    """Kill this process when it would copy this piece."""
    from cluster.core.shared_channel import MemberChannel

    copy = MemberChannel._copy

    def dying(channel: MemberChannel, into: Tensor) -> None:
        if channel._copied == piece:
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        copy(channel, into)

    MemberChannel._copy = dying  # type: ignore[method-assign]


def differences(taken: Mapping[str, Tensor] | str, expected: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that differ, or what failed."""
    if isinstance(taken, str):
        return [taken]
    assert list(taken) == list(expected)
    return [name for name, tensor in expected.items() if not torch.equal(taken[name], tensor)]
