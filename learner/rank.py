"""One learner rank: a Ray actor that holds a DeepSpeed engine.

All ranks are called together, with the same method, by `learner/group.py`. Torch is imported when the engine is built,
in the actor's process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import ray

from cluster.contracts import Publication
from learner.batching import MicroBatch, Packing
from learner.build_lock import operator_folder, remove_stale_lock
from learner.engine import LearnerOptions, build_engine, published_tensors
from learner.places import Place, own_place
from learner.rendezvous import join_ranks, join_store, open_store, use_interface_of
from learner.state_files import FileRecord

if TYPE_CHECKING:
    from torch.distributed import TCPStore

logger = logging.getLogger(__name__)


class LearnerRank:
    """Rank `rank` of `options.learner.ranks`. Made into an actor by `cluster/actor_graph.py`."""

    def __init__(self, rank: int, options: LearnerOptions) -> None:
        self._rank = rank
        self._options = options
        self._store: TCPStore | None = None
        """Rank 0's, for as long as the process lives."""

    def place(self) -> Place:
        """The device that this rank computes on."""
        learner = self._options.learner
        place = own_place(self._rank, learner.gpus_per_rank > 0, learner.threads_per_rank)
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
        from learner.update import PolicyUpdate

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
        return self._update.learn(mini_batches)

    def publish(self, version: int) -> Publication | None:
        """Put the current weights, or what adapters have learned, into the object store. Rank 0 returns the
        publication, the others None."""
        from learner.packing import file_parts

        probes = self.probe_logprobs(self._options.probe_tokens)
        with published_tensors(self._engine, self._options.learner) as tensors:
            if self._rank != 0:
                return None
            weights = ray.put(file_parts(tensors))
        return Publication(
            version=version,
            weights=weights,
            probe_tokens=self._options.probe_tokens,
            probe_logprobs=probes,
        )

    def probe_logprobs(self, sequences: Sequence[Sequence[int]]) -> tuple[np.ndarray, ...]:
        """Log-probabilities at temperature 1 of all tokens but the first of each sequence, float32 [T - 1]."""
        from learner.logprobs import sequence_logprobs

        model, device = self._engine.module, self._engine.device
        return tuple(sequence_logprobs(model, tokens, device) for tokens in sequences)

    def export(self, directory: Path) -> None:
        """Write the current model and its tokenizer as a Hugging Face directory. An adapter is merged into it, and also
        written by itself, as peft reads it, into `adapter/` inside."""
        from learner.exporting import export_model

        export_model(self._engine, self._options, directory, write=self._rank == 0)

    def save(self, directory: Path) -> dict[Path, FileRecord]:
        """Write this rank's part of a checkpoint. Returns the files that it wrote; the caller marks it complete."""
        from learner.training_state import save_training_state

        return save_training_state(self._engine, directory, self._options)

    def load(self, directory: Path, scratch: Path) -> None:
        """Restore what `save` wrote, with any number of ranks."""
        from learner.training_state import load_training_state

        load_training_state(self._engine, directory, self._options, scratch)
