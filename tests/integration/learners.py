"""Learner ranks that build one engine after the other. DeepSpeed takes seconds to start, and a tiny model no time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from cluster.core.actor import Actor
from cluster.core.actor_options import LearnerOptions
from cluster.runtime.placement import cpu_environment
from learner.engine.group import LearnerGroup
from learner.engine.rank import LearnerRank


class ReusedRank(LearnerRank):
    """A rank that joins the process group once, and builds an engine at each start."""

    def become(self, options: LearnerOptions) -> None:
        if hasattr(self, "_engine"):
            self._engine.destroy()
            del self._engine, self._update
        self._options = options

    def rendezvous(self) -> tuple[str, int]:
        return super().rendezvous() if self._store is None else (self._store.host, self._store.port)

    def _join(self, address: str, port: int) -> None:
        import torch

        import learner.engine.deepspeed_engine
        from learner.engine.deepspeed_engine import deepspeed_config

        if not torch.distributed.is_initialized():
            super()._join(address, port)

        def everything_partitioned(*arguments: Any) -> dict[str, Any]:
            """Partition the parameters of tiny models, which are smaller than ZeRO 3's threshold."""
            config = deepspeed_config(*arguments)
            config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
            return config

        learner.engine.deepspeed_engine.deepspeed_config = everything_partitioned

    def evaluate(self, function: Any, *arguments: Any) -> Any:
        """Return the result of `function(engine, …)` in this process."""
        return function(self._engine, *arguments)


class ReusedRanks:
    """The processes of M learner ranks."""

    def __init__(self, actors: Sequence[ray.actor.ActorHandle]) -> None:
        self.actors = actors

    async def become(self, options: LearnerOptions) -> LearnerGroup:
        """Build a group of engines, which replaces the group before."""
        for actor in self.actors:
            await actor.become.remote(options)
        group = LearnerGroup([Actor(actor) for actor in self.actors], options)
        await group.start()
        return group


@contextmanager
def reused_ranks(count: int) -> Iterator[ReusedRanks]:
    actor = ray.remote(ReusedRank).options(
        num_cpus=0.5, runtime_env={"env_vars": cpu_environment(1, on_gpu=False)}
    )
    actors = [actor.remote(rank, None) for rank in range(count)]
    try:
        yield ReusedRanks(actors)
    finally:
        for each in actors:
            ray.kill(each)
