"""A channel for weights through memory that processes of one device share: from learner ranks to engine processes.

Every learner rank serves the members on its own device, with two buffers in turn. It fills one while its members copy
the other one, so a version needs two buckets of memory beside the model:

    rank k:      channel = ServingChannel(spec, rank, ranks, device, provide)   # waits for all members and ranks
                 channel.broadcast(tensor)          # returns when the tensor is in a buffer
                 channel.finish()                   # returns when all own members have copied everything
    member m:    channel = MemberChannel(spec, m, device)
                 channel.broadcast(tensor)          # copies a buffer into the tensor

All of them meet in the learner's store, and agree there on every buffer. The values are empty, or tell what failed:

    arrived/M, rank/K    the device and the process of a member, or of a rank
    served/M             the rank that serves member M, its process and its memory
    ready/K/N            piece N is in a buffer of rank K
    done/N/M             member M has copied it

A rank and its members watch each other's processes, so the end of one is noticed within a second. Everything else that
keeps a process waiting ends at a deadline.

Piece N is in buffer N mod 2, and its keys are deleted when it is copied. Rank 0 deletes the other keys of a channel
when the members of the next one have arrived. A channel in which anything failed is useless to the members of that
rank, and to no others.
"""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import cycle
from typing import TYPE_CHECKING, Any

from cluster.core.peer_process import PeerProcess, own_process
from cluster.core.shared_memory import SharedMemory, open_memory
from cluster.core.weight_channel import FAILURES, Arrival, ChannelSpec, absent, own_arrival

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

BUFFERS = 2
"""The number of pieces that the memory of a rank holds."""
_PATIENCE = 2
"""The number of deadlines that a member waits for its rank, which may itself wait for another member, or, when it
gathers weights, for a rank that does."""
_LOOK_EVERY_S = 1.0
"""The interval at which a process that waits sees whether the other one has ended."""


class ServingChannel:
    """The end of learner rank `rank`, one of `ranks`. All of them belong to the channel, also those without members.

    `provide` returns the memory for the buffers. It is called if there are members, and may return the memory of an
    earlier channel. It stays the caller's.

    Raises:
        TimeoutError: if some members or ranks did not arrive in time.
        RuntimeError: if there is no memory.
    """

    def __init__(
        self,
        spec: ChannelSpec,
        rank: int,
        ranks: int,
        device: torch.device,
        provide: Callable[[], SharedMemory],
    ) -> None:
        from torch.distributed import PrefixStore

        self.spec = spec
        self._rank = rank
        self._device = device
        self._members: dict[int, PeerProcess] = {}
        """The members that this rank serves."""
        self._copied = self._sent = 0
        """The number of pieces that all own members have copied, and that were put into a buffer."""
        self._buffers: tuple[torch.Tensor, ...] = ()
        self._refused = ""
        """The text for members on devices without a rank, if there are such members."""
        joined = spec.store()
        self._store: Any = PrefixStore(spec.prefix, joined)
        try:
            self._members = self._met(ranks)
        except FAILURES as failure:
            if rank == 0:
                self._answer(range(1, spec.size), str(failure))
            raise
        finally:
            if rank == 0:  # after the members have left the channel before
                _delete_earlier(joined, spec.number)
        if self._members:
            self._serve(provide)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Copy a tensor, uint8 [bytes], into the buffers, in pieces if it is larger than one.

        Raises:
            RuntimeError, TimeoutError: if a member failed, or did not copy an earlier piece in time (see `FAILURES`).
        """
        if not self._members:
            return
        for piece in _pieces(tensor, len(self._buffers[0])):
            while self._sent - self._copied >= BUFFERS:
                self._await_copies()
            self._buffers[self._sent % BUFFERS][: len(piece)].copy_(piece)
            _synchronize(self._device)
            self._store.set(self._ready(self._sent), "")
            self._sent += 1

    def finish(self) -> None:
        """Wait until all own members have copied everything.

        Raises:
            RuntimeError, TimeoutError: if a member failed, or did not copy a piece in time; also, in rank 0, if there
                are members that no rank serves.
        """
        while self._copied < self._sent:
            self._await_copies()
        if self._refused and self._rank == 0:
            raise RuntimeError(self._refused)

    def close(self, failure: str = "") -> None:
        """Leave the channel. Own members that still wait for this rank fail, with the text of the `failure`."""
        if not self._members:
            return
        text = failure or f"{self._title} was closed"
        self._buffers = ()
        for process in self._members.values():
            process.close()
        try:
            # Also the pieces that are being copied: the memory may soon have other content.
            for number in range(self._copied, self._sent + 1):
                self._store.set(self._ready(number), text)
        except FAILURES as error:
            logger.warning("weight channel %d is left as it is: %s", self.spec.number, error)

    def _met(self, ranks: int) -> dict[int, PeerProcess]:
        """Wait for all members and ranks. Return the members that this rank serves."""
        spec, store = self.spec, self._store
        store.set(f"rank/{self._rank}", _arrival(self._rank, self._device))
        names = {f"arrived/{member}": _name(spec, member) for member in range(1, spec.size)}
        names |= {f"rank/{rank}": f"learner rank {rank}" for rank in range(ranks)}
        if missing := absent(store, list(names), spec.timeout_s):
            raise TimeoutError(
                f"{', '.join(names[key] for key in missing)} did not arrive at weight channel {spec.number} (of "
                f"{spec.size - 1} engine processes, at {spec.address}:{spec.port}) within {spec.timeout_s:g} s"
            )
        found = {key: json.loads(store.get(key)) for key in names}
        members = [Arrival(**found[f"arrived/{member}"]["device"]) for member in range(1, spec.size)]
        served = assign(members, [Arrival(**found[f"rank/{rank}"]["device"]) for rank in range(ranks)])
        if elsewhere := [member for member in members if member.rank not in served]:
            where = ", ".join(f"{_name(spec, one.rank)} on {_place(one)}" for one in elsewhere)
            self._refused = (
                f"no learner rank shares the device of {where}: set rollout.weight_transport to broadcast or pull, or "
                "give learner and engines fractions of the same GPUs"
            )
            if self._rank == 0:
                self._answer([one.rank for one in elsewhere], self._refused)
        return {
            member: PeerProcess(found[f"arrived/{member}"]["process"])
            for member, rank in served.items()
            if rank == self._rank
        }

    def _serve(self, provide: Callable[[], SharedMemory]) -> None:
        try:
            memory = provide()
        except FAILURES as failure:
            self._answer(self._members, str(failure))
            self.close(str(failure))
            raise
        self._buffers = memory.content.chunk(BUFFERS)
        served = {"rank": self._rank, "process": own_process(), "handle": memory.handle}
        self._answer(self._members, "", **served, size=len(memory.content))

    def _answer(self, members: Iterable[int], failure: str, **served: Any) -> None:
        for member in members:
            self._store.set(f"served/{member}", json.dumps({"failure": failure, **served}))

    def _await_copies(self) -> None:
        """Wait until all own members have copied the oldest piece."""
        spec, number = self.spec, self._copied
        done = {_done(number, member): member for member in self._members}
        watched = {key: self._members[member] for key, member in done.items()}
        missing, ended = _absent(self._store, watched, spec.timeout_s)
        if ended:
            names = ", ".join(_name(spec, done[key]) for key in ended)
            raise RuntimeError(
                f"the process of {names} ended before it copied piece {number} of {self._title}"
            )
        if missing:
            names = ", ".join(_name(spec, done[key]) for key in missing)
            raise TimeoutError(
                f"{names} did not copy piece {number} of {self._title} within {spec.timeout_s:g} s"
            )
        failures = [text for key in done if (text := self._store.get(key).decode())]
        if failures:
            raise RuntimeError("; ".join(failures))
        for key in (self._ready(number), *done):
            self._store.delete_key(key)
        self._copied += 1

    @property
    def _title(self) -> str:
        return f"weight channel {self.spec.number} from learner rank {self._rank}"

    def _ready(self, number: int) -> str:
        return f"ready/{self._rank}/{number}"


class MemberChannel:
    """The end of engine process `member`, a rank of the spec above 0.

    Raises:
        TimeoutError: if the learner did not answer in time.
        RuntimeError: if the learner refused the channel, or its memory cannot be mapped here.
    """

    def __init__(self, spec: ChannelSpec, member: int, device: torch.device) -> None:
        from torch.distributed import PrefixStore

        self.spec = spec
        self._member = member
        self._device = device
        self._copied = 0
        self._memory: SharedMemory | None = None
        self._process: PeerProcess | None = None
        """The process of the rank."""
        self._store: Any = PrefixStore(spec.prefix, spec.store())
        self._store.set(f"arrived/{member}", _arrival(member, device))
        try:
            self._rank, self._process, self._memory = self._served()
        except FAILURES as failure:
            self._report(f"{_name(spec, member)}: {failure}")
            raise
        self._buffers = self._memory.content.chunk(BUFFERS)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Fill `tensor`, uint8 [bytes], with the tensor of the same size that the rank sends.

        Raises:
            RuntimeError, TimeoutError: if the rank is gone, failed, or took too long (see `FAILURES`).
        """
        for piece in _pieces(tensor, len(self._buffers[0])):
            self._copy(piece)

    def close(self) -> None:
        """Leave the channel. A rank that still waits for this member fails."""
        memory, self._memory = self._memory, None
        if memory is None or self._process is None:
            return
        self._process.close()
        self._buffers = ()
        try:
            memory.close()
            self._report(f"{_name(self.spec, self._member)} left weight channel {self.spec.number}")
        except FAILURES as failure:
            logger.warning("weight channel %d is left as it is: %s", self.spec.number, failure)

    def _served(self) -> tuple[int, PeerProcess, SharedMemory]:
        """Wait for the answer of the learner. Return the rank that serves this member, its process and its memory."""
        answer = json.loads(self._awaited(f"served/{self._member}", "the learner", "answer"))
        if answer["failure"]:
            raise RuntimeError(answer["failure"])
        memory = open_memory(answer["handle"], answer["size"], self._device)
        return answer["rank"], PeerProcess(answer["process"]), memory

    def _copy(self, piece: torch.Tensor) -> None:
        ready = f"ready/{self._rank}/{self._copied}"
        failure = self._awaited(ready, f"learner rank {self._rank}", f"send piece {self._copied}")
        if not failure:
            piece.copy_(self._buffers[self._copied % BUFFERS][: len(piece)])
            _synchronize(self._device)
            failure = self._store.get(ready)  # a rank that has given up may have changed the buffer meanwhile
        if failure:
            raise RuntimeError(failure.decode())
        self._report("")
        self._copied += 1

    def _awaited(self, key: str, who: str, what: str) -> bytes:
        limit_s = _PATIENCE * self.spec.timeout_s
        missing, ended = _absent(self._store, {key: self._process}, limit_s)
        if ended:
            raise RuntimeError(
                f"the process of {who} ended; it did not {what} at weight channel {self.spec.number}"
            )
        if missing:
            raise TimeoutError(
                f"{who} did not {what} at weight channel {self.spec.number} within {limit_s:g} s"
            )
        value: bytes = self._store.get(key)
        return value

    def _report(self, failure: str) -> None:
        """Tell the rank that the next piece is copied, or why it is not."""
        self._store.set(_done(self._copied, self._member), failure)


def assign(members: Sequence[Arrival], ranks: Sequence[Arrival]) -> Mapping[int, int]:
    """Return the learner rank that serves each member: one on the same device. Ranks of one device, which exist on the
    CPU only, take its members in turn. Members on other devices are left out."""
    at: dict[tuple[str, str], list[int]] = defaultdict(list)
    for rank in ranks:
        at[rank.host, rank.device].append(rank.rank)
    turns = {place: cycle(found) for place, found in at.items()}
    return {
        member.rank: next(turns[member.host, member.device])
        for member in members
        if (member.host, member.device) in turns
    }


def _arrival(rank: int, device: torch.device) -> str:
    return json.dumps({"device": asdict(own_arrival(rank, device)), "process": own_process()})


def _absent(
    store: Any, keys: Mapping[str, PeerProcess | None], timeout_s: float
) -> tuple[list[str], list[str]]:
    """Wait until all `keys` are in the store, or a process that should set one has ended, or for `timeout_s`. Return
    the keys that are missing, and those of them that no process will set any more."""
    end = time.monotonic() + timeout_s
    missing = list(keys)
    watched = any(keys.values())
    while missing and (left := end - time.monotonic()) > 0:
        ended = [key for key in missing if (process := keys[key]) is not None and process.ended]
        if not ended:
            missing = absent(store, missing, min(left, _LOOK_EVERY_S) if watched else left)
            continue
        missing = [key for key in missing if not store.check([key])]  # a process may set its key and end
        if ended := [key for key in ended if key in missing]:
            return missing, ended
    return missing, []


def _delete_earlier(store: Any, number: int) -> None:
    """Delete the keys of all channels before channel `number`."""
    for key in store.list_keys():
        first, _, rest = key.partition("/")
        if first == "weights" and int(rest.partition("/")[0]) < number:
            store.delete_key(key)


def _pieces(tensor: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    """Yield a tensor, uint8 [bytes], in parts of at most `size` bytes."""
    for begin in range(0, len(tensor), size):
        yield tensor[begin : begin + size]


def _done(number: int, member: int) -> str:
    return f"done/{number}/{member}"


def _name(spec: ChannelSpec, member: int) -> str:
    """Return the words for an engine process in a message. (Its rank is not that of a learner rank.)"""
    return f"{spec.names[member]} (member {member})" if member < len(spec.names) else f"member {member}"


def _place(arrival: Arrival) -> str:
    return f"{'the CPU' if arrival.device == 'cpu' else arrival.device} of {arrival.host}"


def _synchronize(device: torch.device) -> None:
    """Wait until the copies of this thread's stream are complete."""
    if device.type == "cuda":
        import torch

        torch.cuda.current_stream(device).synchronize()
