"""The current weights of an engine as a mapping that gathers them in buckets. The whole model is never in one place.

Under ZeRO 3 a weight is whole only while all ranks gather it together. Rank 0 reads the mapping in any order; before
each bucket it tells the other ranks which one to gather, and they follow it until it leaves the block:

    rank 0                                        other ranks
    with streamed_weights(engine, …) as weights:  with streamed_weights(engine, …):  # returns when rank 0 is done
        for name, tensor in weights.items():          pass
            use(tensor)                           # a tensor that is kept keeps its memory

With `in_every_rank` all ranks read the mapping, each in the order of the sources, and no rank announces anything. What
a rank has not read when it leaves the block, it gathers then, so that a rank that fails does not keep others waiting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cluster.core.config import LearnerConfig
from cluster.core.weight_buckets import GATHER_BYTES
from learner.model.partitioned import is_partitioned, whole_size
from learner.model.weight_sources import WeightSource, plain_sources

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_END = -1
"""The number that rank 0 sends when it needs no more buckets."""


def whole_sources(engine: DeepSpeedEngine, learner: LearnerConfig) -> list[WeightSource]:
    """Return the sources of all weights under their checkpoint names: tied weights once, adapters merged."""
    if learner.lora_rank is None:
        return plain_sources(engine.module.model)
    from learner.model.adapters import merged_sources

    return merged_sources(engine.module.model)


def published_sources(engine: DeepSpeedEngine, learner: LearnerConfig) -> list[WeightSource]:
    """Return the sources of the tensors that a rollout worker needs to serve the current weights: all weights, or the
    low-rank updates of the weights that it has loaded."""
    if learner.lora_rank is None:
        return plain_sources(engine.module.model)
    from learner.model.adapters import factor_sources

    return factor_sources(engine.module.model)


@contextmanager
def streamed_weights(
    engine: DeepSpeedEngine,
    sources: Sequence[WeightSource],
    bucket_bytes: int = GATHER_BYTES,
    in_every_rank: bool = False,
) -> Iterator[Mapping[str, Tensor] | None]:
    """Provide the tensors of `sources` by name and in this order, on rank 0 or in every rank. Otherwise the other ranks
    get None, and enter the block when rank 0 has left it. A collective under ZeRO 3, with the same sources on all
    ranks."""
    stream = WeightStream(engine, sources, bucket_bytes, in_every_rank)
    if engine.global_rank != 0 and not in_every_rank:
        stream.follow()
        yield None
        return
    try:
        yield stream
    finally:
        stream.end()


class WeightStream(Mapping[str, Tensor]):
    """The mapping of rank 0, or of every rank. One bucket is gathered at a time, when a tensor in it is first asked
    for."""

    def __init__(
        self, engine: DeepSpeedEngine, sources: Sequence[WeightSource], bucket_bytes: int, in_every_rank: bool
    ) -> None:
        self._in_every_rank = in_every_rank
        self._device = engine.device
        self._sources = {source.layout.name: source for source in sources}
        partitioned = engine.zero_optimization_stage() == 3
        self._buckets = buckets(sources, bucket_bytes) if partitioned else []
        self._bucket_of = {
            source.layout.name: number for number, bucket in enumerate(self._buckets) for source in bucket
        }
        self._present: int | None = None
        """The bucket that is gathered."""
        self._gathered = ExitStack()

    def __getitem__(self, name: str) -> Tensor:
        source = self._sources[name]
        bucket = self._bucket_of.get(name)
        if bucket is not None and bucket != self._present:
            if self._in_every_rank:
                self._gather_up_to(bucket)
            else:
                self._announce(bucket)
                self._gather(bucket)
        return source.compute()

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def follow(self) -> None:
        """Gather what rank 0 asks for, until it needs no more."""
        if self._buckets:
            while (bucket := self._announce(_END)) != _END:
                self._gather(bucket)
            self._gathered.close()

    def end(self) -> None:
        """Free the last bucket, and let the other ranks continue (rank 0, or every rank)."""
        if not self._buckets:
            return
        if self._in_every_rank:
            self._gather_up_to(len(self._buckets) - 1)
        else:
            self._announce(_END)
        self._gathered.close()

    def _announce(self, bucket: int) -> int:
        """Return the number that rank 0 passes to this method, on all ranks."""
        number = torch.tensor([bucket], device=self._device)
        torch.distributed.broadcast(number, 0)
        return int(number)

    def _gather_up_to(self, bucket: int) -> None:
        """Gather all buckets that follow, up to this one, as all ranks do.

        Raises:
            ValueError: if it was gathered before. The other ranks do not gather it again.
        """
        following = 0 if self._present is None else self._present + 1
        if bucket < following - 1:
            raise ValueError("in every rank, the weights are read in their order")
        for number in range(following, bucket + 1):
            self._gather(number)

    def _gather(self, bucket: int) -> None:
        """Free the present bucket, then gather the parameters of another one."""
        import deepspeed

        self._gathered.close()
        self._present = bucket
        parameters: list[Any] = [p for source in self._buckets[bucket] for p in source.parameters]
        for parameter in dict.fromkeys(parameters):
            # One by one, because gloo holds everything twice that it gathers at a time.
            self._gathered.enter_context(deepspeed.zero.GatheredParameters([parameter]))


def buckets(sources: Sequence[WeightSource], limit: int) -> list[list[WeightSource]]:
    """Divide `sources`, in their order, into buckets whose partitioned parameters have at most `limit` bytes together,
    or into buckets of one source."""
    result: list[list[WeightSource]] = []
    parameters: dict[int, int] = {}
    for source in sources:
        own = {id(p): whole_size(p) * p.element_size() for p in source.parameters if is_partitioned(p)}
        if not result or sum((parameters | own).values()) > limit:
            result.append([])
            parameters = {}
        result[-1].append(source)
        parameters |= own
    return result
