"""Runs inside vLLM's worker processes: replaces the model's weights in place, and ends with the rollout worker.

It also completes two things that vLLM leaves undone on CPU; see the comments.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from cluster.core.types import WeightLayout
from cluster.core.weight_transport import WeightSource, transport_part
from rollout.weights.lora_update import is_low_rank, updated_weights

# Linux lends a process the CPU's tile registers (AMX) only when it asks. vLLM's bfloat16 attention takes them without
# asking, and dies of an illegal instruction unless something else in its process has asked before.
torch.cpu._init_amx()


class EngineExtension:
    """vLLM worker extension (`worker_extension_cls`): its methods become methods of vLLM's worker."""

    model_runner: Any
    rank: int
    """The rank of this process among those of its engine."""
    device: torch.device
    _sources: dict[str, WeightSource] | None = None
    """The sources that versions have come from, by path. A channel lasts over many versions."""

    def end_with(self, process_id: int) -> None:
        """From now on, end this process as soon as process `process_id`, the rollout worker's, has ended.

        A worker that is killed does not end its engine, and if its raylet is killed too, no other process does: the
        engine would keep its memory forever.
        """
        worker = os.pidfd_open(process_id)

        def watch() -> None:
            select.select([worker], [], [])
            os._exit(1)

        threading.Thread(target=watch, name="end with the rollout worker", daemon=True).start()

    def receive_version(
        self, source: str, arguments: Sequence[Any], layout: Sequence[tuple[str, str, Sequence[int]]]
    ) -> None:
        """Load a version from a weight transport's `source` ("module:Class", a `WeightSource`).

        A version is either all weights, with the names and shapes of the Hugging Face checkpoint, or low-rank updates
        of the weights that the engine loaded first. `layout` describes its tensors: name, dtype and shape.

        Raises:
            RuntimeError: if the transport failed. The model may then hold tensors of two versions.
        """
        origin = self._source(source)
        failures: list[Exception] = []

        def received() -> Iterator[tuple[str, torch.Tensor]]:
            try:
                yield from origin.tensors(
                    arguments, [WeightLayout(name, dtype, tuple(shape)) for name, dtype, shape in layout]
                )
            except origin.failures as failure:
                # End the load regularly: a load that is broken off leaves layers half unpacked, and the next load would
                # go wrong without an error.
                failures.append(failure)

        tensors = received()
        first = list(islice(tensors, 1))
        if first and is_low_rank(name for name, _ in first):
            updates = dict(chain(first, tensors))
            if not failures:
                self._load(self._updated(updates))
        elif first:
            self._load(chain(first, tensors))
        if failures:
            origin.close()
            raise RuntimeError(f"the weights did not arrive: {failures[0]}") from failures[0]
        if not first:
            raise RuntimeError(f"{source} delivered no weights")

    def _source(self, path: str) -> WeightSource:
        """Return this process's source of a class, made at its first use."""
        if self._sources is None:
            self._sources = {}
        if path not in self._sources:
            self._sources[path] = transport_part(path)(self.device, self.rank)
        return self._sources[path]

    def _updated(self, updates: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield all weights: those that the engine loaded first, with the low-rank updates added."""
        loaded = Path(self.model_runner.model_config.model)
        # Some files also hold a tied output head, which is the embedding.
        skipped = ("lm_head.weight",) if self._head_is_tied() else ()
        return (
            (name, weight)
            for name, weight in updated_weights(loaded, updates, self.device)
            if name not in skipped
        )

    def _load(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        self.model_runner.reload_weights(weights_iterator=weights)
        self._repack_tied_head()

    def _repack_tied_head(self) -> None:
        """Give a tied output head the new embedding.

        On CPU, vLLM packs linear weights for its kernels after loading. A reload repacks every layer that has weights
        of its own. A head that is tied to the embedding has none, and would keep serving the old weights silently.
        """
        head = getattr(self.model_runner.get_model(), "lm_head", None)
        if self._head_is_tied() and head is not None:
            head.quant_method.process_weights_after_loading(head)

    def _head_is_tied(self) -> bool:
        return bool(getattr(self.model_runner.get_model().config, "tie_word_embeddings", False))
