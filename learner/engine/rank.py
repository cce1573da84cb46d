"""One learner rank: a Ray actor that holds a DeepSpeed engine.

All ranks are called together, with the same method, by `learner/engine/group.py`. Torch is imported when the engine
is built, in the actor's process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from cluster.core.actor_options import LearnerOptions
from cluster.core.network import use_interface_of
from cluster.core.types import PolicyVersion
from cluster.core.weight_transport import RequestedSender, WeightSender, transport_part
from learner.engine.deepspeed_engine import build_engine
from learner.engine.finite import (
    refuse_non_finite_probe,
    refuse_non_finite_state,
    refuse_non_finite_weights,
)
from learner.engine.process_setup import (
    RankDevice,
    join_ranks,
    join_store,
    open_store,
    operator_folder,
    own_device,
    remove_stale_lock,
    set_numerics,
)
from learner.model.batching import MicroBatch, Packing
from learner.state.state_files import FileRecord

if TYPE_CHECKING:
    from torch.distributed import TCPStore

logger = logging.getLogger(__name__)


class LearnerRank:
    """Rank `rank` of `options.learner.ranks`. Made into an actor by `cluster/training/actors.py`."""

    def __init__(self, rank: int, options: LearnerOptions) -> None:
        self._rank = rank
        self._options = options
        self._store: TCPStore | None = None
        """Rank 0's, for as long as the process lives."""
        self._published: PolicyVersion | None = None
        """Whose weights the engine still has."""

    def device(self) -> RankDevice:
        """Return the device that this rank computes on."""
        learner = self._options.learner
        device = own_device(self._rank, learner.gpus_per_rank > 0, learner.threads_per_rank)
        logger.info("%s", device)
        return device

    def rendezvous(self) -> tuple[str, int]:
        """Open the store through which the ranks meet (called on rank 0 only). Returns its address and port."""
        address = ray.util.get_node_ip_address()
        self._store = open_store(address)
        return address, self._store.port

    def start(self, address: str, port: int) -> int:
        """Join the other ranks at `address:port` and build the engine. Returns the process id."""
        self._prepare_process()
        self._join(address, port)
        self._engine, self._packing = build_engine(self._options)
        self._sender: WeightSender = transport_part(self._options.transport.sender)(self._engine.device)
        from learner.engine.update import PolicyUpdate

        self._update = PolicyUpdate(self._engine, self._options)
        return os.getpid()

    def _join(self, address: str, port: int) -> None:
        learner = self._options.learner
        join_ranks(
            self._store or join_store(address, port, learner.start_timeout_s),
            self._rank,
            learner.ranks,
            on_gpu=learner.gpus_per_rank > 0,
            # The whole start has `start_timeout_s`. A missing rank is named before that time is over.
            meet_timeout_s=0.9 * learner.start_timeout_s,
            collective_timeout_s=learner.step_timeout_s,
        )

    def _prepare_process(self) -> None:
        """Set up the process before it meets the other ranks: network interface, threads, precision, stale locks."""
        os.environ |= use_interface_of(ray.util.get_node_ip_address())
        learner = self._options.learner
        set_numerics(learner, self._options.dtype)
        if learner.gpus_per_rank == 0:
            remove_stale_lock(operator_folder())

    def packing(self) -> Packing:
        """Return how micro-batches are packed for this model. Known after `start`, and the same on all ranks."""
        return self._packing

    def learn(self, mini_batches: Sequence[Sequence[MicroBatch]]) -> list[dict[str, float]]:
        """Learn from all mini-batches. Returns this rank's statistics (see `PolicyUpdate`), one dict per step."""
        self._published = None
        return self._update.learn(mini_batches)

    def publish(self, version: int) -> PolicyVersion | None:
        """Make the current weights (or, with adapters, their low-rank updates) available to the engines as `version`.

        All ranks gather the weights together, bucket by bucket as the sender reads them. Rank 0 returns the version as
        workers are to be given it, the other ranks return None.

        Raises:
            NonFiniteError: if a weight, or a log-probability of the probe, is NaN or infinite on any rank.
        """
        from learner.engine.weight_stream import published_sources, streamed_weights

        refuse_non_finite_weights(self._engine)
        probes = self.probe_logprobs(self._options.probe_tokens)
        refuse_non_finite_probe(probes)
        sources = published_sources(self._engine, self._options.learner)
        self._published = PolicyVersion(
            version=version,
            weights=None,
            probe_tokens=self._options.probe_tokens,
            probe_logprobs=probes,
            layout=tuple(source.layout for source in sources),
        )
        with streamed_weights(self._engine, sources) as tensors:
            published = None if tensors is None else self._sender.publish(self._published, tensors)
        self._leave_memory()
        return published

    def send(self, version: int, request: Any) -> Any:
        """Have the weight transport's sender handle `request` with the weights that were published as `version`.

        All ranks gather the weights together. Rank 0 returns the sender's answer, or None if the rank has trained
        since and does not have these weights any more. So do the other ranks if the transport's sender works in every
        rank; if not, they return None.
        """
        if self._published is None or self._published.version != version:
            return None
        assert isinstance(self._sender, RequestedSender), "this transport's coordinator makes no requests"
        from learner.engine.weight_stream import published_sources, streamed_weights

        sources = published_sources(self._engine, self._options.learner)
        in_every_rank = self._options.transport.in_every_rank
        with streamed_weights(self._engine, sources, in_every_rank=in_every_rank) as tensors:
            answer = None if tensors is None else self._sender.send(request, self._published, tensors)
        self._leave_memory()
        return answer

    def _leave_memory(self) -> None:
        """Return the memory that torch keeps for later to the GPU, if engines need it now."""
        if self._options.shares_gpu and self._engine.device.type == "cuda":
            import torch

            self._engine.empty_partition_cache()
            torch.cuda.empty_cache()

    def probe_logprobs(self, sequences: Sequence[Sequence[int]]) -> tuple[np.ndarray, ...]:
        """Log-probabilities at temperature 1 of all tokens but the first of each sequence, float32 [T - 1]."""
        from learner.model.policy import sequence_logprobs

        model, device = self._engine.module, self._engine.device
        return tuple(sequence_logprobs(model, tokens, device) for tokens in sequences)

    def export(self, directory: Path) -> None:
        """Write the current model and its tokenizer as a Hugging Face directory. An adapter is merged into it, and also
        written by itself, as peft reads it, into `adapter/` inside."""
        from learner.engine.deepspeed_engine import export_model

        export_model(self._engine, self._options, directory)

    def save(self, directory: Path) -> dict[Path, FileRecord]:
        """Write this rank's part of a checkpoint. Returns the files that it wrote; the caller marks it complete.

        Raises:
            NonFiniteError: if a weight or the optimizer's state is NaN or infinite.
        """
        from learner.state.training_state import save_training_state

        refuse_non_finite_state(self._engine)
        return save_training_state(self._engine, directory, self._options)

    def load(self, directory: Path, scratch: Path) -> None:
        """Restore what `save` wrote, with any number of ranks."""
        from learner.state.training_state import load_training_state

        load_training_state(self._engine, directory, self._options, scratch)
