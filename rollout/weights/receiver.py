"""Runs inside vLLM's worker process: replaces the model's weights in place, from a file or as they are broadcast, ends
with the rollout worker, and mends what vLLM leaves undone there."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cluster.core.weight_channel import FAILURES, ChannelSpec, WeightChannel
from rollout.weights.lora_update import is_low_rank, updated_weights

# Linux lends a process the CPU's tile registers (AMX) only when it asks. vLLM's bfloat16 attention takes them without
# asking, and dies of an illegal instruction unless something else in its process has asked before.
torch.cpu._init_amx()


class WeightReceiver:
    """vLLM worker extension (`worker_extension_cls`): its methods become methods of vLLM's worker."""

    model_runner: Any
    rank: int
    """Of this process among those of its engine."""
    device: torch.device
    _channel: WeightChannel | None = None

    def end_with(self, process_id: int) -> None:
        """From now on, end this process when the rollout worker's has ended, whatever lies between the two. A worker
        that is killed takes nothing along, and where its raylet is killed too nobody else does: an engine would keep
        its memory for ever."""
        worker = os.pidfd_open(process_id)

        def watch() -> None:
            select.select([worker], [], [])
            os._exit(1)

        threading.Thread(target=watch, name="end with the rollout worker", daemon=True).start()

    def receive_weights(self, path: str) -> None:
        """Load the safetensors file at `path` into the served model: all weights, under the names and with the shapes
        of the Hugging Face checkpoint, or low-rank updates of those that the engine loaded at its start."""
        weights = load_file(path)
        self._load(self._updated(weights) if is_low_rank(weights) else iter(weights.items()))

    def receive_broadcast(
        self, spec: Sequence[Any], first_rank: int, layout: Sequence[tuple[str, str, Sequence[int]]]
    ) -> None:
        """Load the same as it comes over a link: tensors of `layout`, in its order. `spec` holds the fields of a
        `ChannelSpec`, `first_rank` is that of this engine's first process in it.

        Raises:
            RuntimeError, TimeoutError: the link failed. What the model holds now is a mixture.
        """
        failures: list[Exception] = []
        try:
            link = self._joined(ChannelSpec(*spec), first_rank + self.rank)
        except FAILURES as failure:
            raise RuntimeError(f"the other ends of the weight link were not reached: {failure}") from failure

        def received() -> Iterator[tuple[str, torch.Tensor]]:
            for name, dtype, shape in layout:
                tensor = torch.empty(tuple(shape), dtype=getattr(torch, dtype), device=self.device)
                try:
                    link.broadcast(tensor)
                except FAILURES as failure:
                    # Ends the load in good order: one that is broken off leaves layers half taken apart, and the next
                    # load would go wrong without an error.
                    failures.append(failure)
                    return
                yield name, tensor

        if is_low_rank([name for name, _, _ in layout]):
            updates = {name: tensor.cpu() for name, tensor in received()}
            if not failures:
                self._load(self._updated(updates))
        else:
            self._load(received())
        if failures:
            self._leave_channel()
            raise RuntimeError(f"the weight link broke: {failures[0]}") from failures[0]

    def _joined(self, spec: ChannelSpec, rank: int) -> WeightChannel:
        """The link of `spec`. One of other members is of no use any more."""
        if self._channel is None or self._channel.spec != spec:
            self._leave_channel()
            self._channel = WeightChannel(spec, rank, self.device)
        return self._channel

    def _leave_channel(self) -> None:
        link, self._channel = self._channel, None
        if link is not None:
            link.close()

    def _updated(self, updates: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """All weights, of which some are those that the engine loaded, with low-rank updates added."""
        loaded = Path(self.model_runner.model_config.model)
        # Some files hold a tied head beside the embedding that it is.
        skipped = ("lm_head.weight",) if self._head_is_tied() else ()
        return ((name, weight) for name, weight in updated_weights(loaded, updates) if name not in skipped)

    def _load(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        self.model_runner.reload_weights(weights_iterator=weights)
        self._repack_tied_head()

    def _repack_tied_head(self) -> None:
        """Give a tied output head the new embedding.

        On CPU vLLM packs linear weights for its kernels after loading. The reload repacks every layer that has weights
        of its own; a head tied to the embedding has none, and would go on serving the old weights without an error.
        """
        head = getattr(self.model_runner.get_model(), "lm_head", None)
        if self._head_is_tied() and head is not None:
            head.quant_method.process_weights_after_loading(head)

    def _head_is_tied(self) -> bool:
        return bool(getattr(self.model_runner.get_model().config, "tie_word_embeddings", False))
