"""One learner rank: a Ray actor that holds a DeepSpeed engine.

All ranks are called together, with the same method, by `learner/group.py`. Torch is imported when the engine is built,
in the actor's process.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import ray

from cluster.contracts import Publication
from learner.batching import MicroBatch, Packing
from learner.engine import LearnerOptions, build_engine, whole_weights


class LearnerRank:
    """Rank `rank` of `options.learner.ranks`. Made into an actor by `cluster/actor_graph.py`."""

    def __init__(self, rank: int, options: LearnerOptions) -> None:
        self._rank = rank
        self._options = options

    def rendezvous(self) -> tuple[str, int]:
        """This node's address and a port that is free on it."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def start(self, address: str, port: int) -> int:
        """Join the other ranks and build the engine. Returns the process id."""
        self._engine, self._packing = build_engine(self._rank, address, port, self._options)
        from learner.update import PolicyUpdate

        self._update = PolicyUpdate(self._engine, self._options)
        return os.getpid()

    def packing(self) -> Packing:
        """How micro-batches are to be cut for this model. Known after `start`, and the same on all ranks."""
        return self._packing

    def learn(self, mini_batches: Sequence[Sequence[MicroBatch]]) -> list[dict[str, float]]:
        """Learn from all mini-batches. Returns this rank's statistics (see `PolicyUpdate`), one dict per step."""
        return self._update.learn(mini_batches)

    def publish(self, version: int) -> Publication | None:
        """Put the current weights into the object store. Rank 0 returns the publication, the others None."""
        from safetensors.torch import save

        from learner.logprobs import sequence_logprobs

        probes = tuple(
            sequence_logprobs(self._engine.module, tokens, self._engine.device)
            for tokens in self._options.probe_tokens
        )
        with whole_weights(self._engine) as weights:
            if self._rank != 0:
                return None
            packed = save({name: weight.cpu().contiguous() for name, weight in weights.items()})
        return Publication(
            version=version,
            weights=ray.put(np.frombuffer(packed, dtype=np.uint8)),
            probe_tokens=self._options.probe_tokens,
            probe_logprobs=probes,
        )

    def export(self, directory: Path) -> None:
        """Write the current model and its tokenizer as a Hugging Face directory."""
        from transformers import AutoTokenizer

        with whole_weights(self._engine) as weights:
            if self._rank != 0:
                return
            state = {name: weight.cpu().clone() for name, weight in weights.items()}
        self._engine.module.model.save_pretrained(directory, state_dict=state)
        AutoTokenizer.from_pretrained(self._options.model).save_pretrained(directory)

    def save(self, directory: Path) -> None:
        """Write this rank's part of a checkpoint. The caller marks it complete."""
        from learner.training_state import save_training_state

        save_training_state(self._engine, directory)

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote."""
        from learner.training_state import load_training_state

        load_training_state(self._engine, directory)
