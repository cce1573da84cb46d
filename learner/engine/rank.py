"""One learner rank: a Ray actor that holds a DeepSpeed engine.

All ranks are called together, with the same method, by `learner/engine/group.py`. Torch is imported when the engine
is built, in the actor's process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import ray

from cluster.core.actor_options import LearnerOptions
from cluster.core.network import use_interface_of
from cluster.core.types import PolicyVersion, WeightLayout
from cluster.core.weight_channel import FAILURES, ChannelSpec, WeightChannel
from learner.engine.deepspeed_engine import build_engine, published_tensors
from learner.engine.process_setup import (
    RankDevice,
    join_ranks,
    join_store,
    open_store,
    operator_folder,
    own_device,
    remove_stale_lock,
)
from learner.model.batching import MicroBatch, Packing
from learner.state.state_files import FileRecord

if TYPE_CHECKING:
    from torch import Tensor
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
        self._channel: WeightChannel | None = None
        """Rank 0's, to the engines that took the last broadcast."""

    def place(self) -> RankDevice:
        """The device that this rank computes on."""
        learner = self._options.learner
        place = own_device(self._rank, learner.gpus_per_rank > 0, learner.threads_per_rank)
        logger.info("%s", place)
        return place

    def rendezvous(self) -> tuple[str, int]:
        """Of rank 0: open the store through which the ranks meet. Returns its address and port."""
        address = ray.util.get_node_ip_address()
        self._store = open_store(address)
        return address, self._store.port

    def start(self, address: str, port: int) -> int:
        """Join the other ranks at `address:port` and build the engine. Returns the process id."""
        self._prepare_process()
        self._join(address, port)
        self._engine, self._packing = build_engine(self._options)
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
            # The whole start has `start_timeout_s`; who is missing is to be said before that is over.
            meet_timeout_s=0.9 * learner.start_timeout_s,
            collective_timeout_s=learner.step_timeout_s,
        )

    def _prepare_process(self) -> None:
        """What must be so before this process meets the others."""
        os.environ |= use_interface_of(ray.util.get_node_ip_address())
        learner = self._options.learner
        if learner.gpus_per_rank == 0:
            import torch

            torch.set_num_threads(learner.threads_per_rank)
            remove_stale_lock(operator_folder())
            if self._options.dtype == "bfloat16" and not torch.cpu._is_avx512_bf16_supported():
                logger.warning("this CPU has no instructions for bfloat16: float32 is faster here, and exact")

    def packing(self) -> Packing:
        """How micro-batches are to be cut for this model. Known after `start`, and the same on all ranks."""
        return self._packing

    def learn(self, mini_batches: Sequence[Sequence[MicroBatch]]) -> list[dict[str, float]]:
        """Learn from all mini-batches. Returns this rank's statistics (see `PolicyUpdate`), one dict per step."""
        self._published = None
        return self._update.learn(mini_batches)

    def publish(self, version: int, offered: bool = True) -> PolicyVersion | None:
        """Call the current weights, or what adapters have learned, `version`, and put them into the object store; or,
        with `offered` False, leave them here for `broadcast` and `offer`. Rank 0 returns the policy, the others
        None."""
        import torch

        probes = self.probe_logprobs(self._options.probe_tokens)
        with published_tensors(self._engine, self._options.learner) as tensors:
            self._published = PolicyVersion(
                version=version,
                weights=None,
                probe_tokens=self._options.probe_tokens,
                probe_logprobs=probes,
                layout=tuple(
                    WeightLayout(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
                    for name, tensor in tensors.items()
                ),
            )
            published = self._put(tensors) if offered else self._by_first_rank(self._published)
        if self._options.shares_gpu and self._engine.device.type == "cuda":
            self._engine.empty_partition_cache()
            torch.cuda.empty_cache()
        return published

    def offer(self, version: int) -> PolicyVersion | None:
        """Put what was published as `version` into the object store after all. None if it is not there any more: since
        then something was learned. Of ranks but the first always None."""
        if self._published is None or self._published.version != version:
            return None
        with published_tensors(self._engine, self._options.learner) as tensors:
            return self._put(tensors)

    def _put(self, tensors: Mapping[str, Tensor]) -> PolicyVersion | None:
        from learner.weights.packing import file_parts

        if self._rank != 0:
            return None
        assert self._published is not None
        return replace(self._published, weights=ray.put(file_parts(tensors)))

    def _by_first_rank(self, policy: PolicyVersion) -> PolicyVersion | None:
        return policy if self._rank == 0 else None

    def broadcast(self, spec: ChannelSpec) -> str | None:
        """Send what was published over the link of `spec`. Returns what went wrong there, and None if nothing did:
        the ranks go on either way."""
        with published_tensors(self._engine, self._options.learner) as tensors:
            if self._rank != 0:
                return None
            try:
                self._send(spec, tensors)
            except FAILURES as failure:
                self._leave_channel()
                return " ".join(str(failure).split())
        return None

    def _send(self, spec: ChannelSpec, tensors: Mapping[str, Tensor]) -> None:
        if self._channel is None or self._channel.spec != spec:
            self._leave_channel()
            self._channel = WeightChannel(spec, 0, self._engine.device)
        for tensor in tensors.values():
            self._channel.broadcast(tensor.detach().to(self._engine.device).contiguous())

    def _leave_channel(self) -> None:
        link, self._channel = self._channel, None
        if link is not None:
            link.close()

    def probe_logprobs(self, sequences: Sequence[Sequence[int]]) -> tuple[np.ndarray, ...]:
        """Log-probabilities at temperature 1 of all tokens but the first of each sequence, float32 [T - 1]."""
        from learner.model.policy import sequence_logprobs

        model, device = self._engine.module, self._engine.device
        return tuple(sequence_logprobs(model, tokens, device) for tokens in sequences)

    def export(self, directory: Path) -> None:
        """Write the current model and its tokenizer as a Hugging Face directory. An adapter is merged into it, and also
        written by itself, as peft reads it, into `adapter/` inside."""
        from learner.engine.deepspeed_engine import export_model

        export_model(self._engine, self._options, directory, write=self._rank == 0)

    def save(self, directory: Path) -> dict[Path, FileRecord]:
        """Write this rank's part of a checkpoint. Returns the files that it wrote; the caller marks it complete."""
        from learner.state.training_state import save_training_state

        return save_training_state(self._engine, directory, self._options)

    def load(self, directory: Path, scratch: Path) -> None:
        """Restore what `save` wrote, with any number of ranks."""
        from learner.state.training_state import load_training_state

        load_training_state(self._engine, directory, self._options, scratch)
