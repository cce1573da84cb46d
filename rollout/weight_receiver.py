"""Runs inside vLLM's worker process: replaces the model's weights in place, ends with the rollout worker, and mends
what vLLM leaves undone there."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from rollout.weight_updates import is_low_rank, updated_weights

# Linux lends a process the CPU's tile registers (AMX) only when it asks. vLLM's bfloat16 attention takes them without
# asking, and dies of an illegal instruction unless something else in its process has asked before.
torch.cpu._init_amx()


LOOK_FOR_PARENT_S = 2.0


class WeightReceiver:
    """vLLM worker extension (`worker_extension_cls`): its methods become methods of vLLM's worker."""

    model_runner: Any

    def end_with_parent(self) -> None:
        """From now on, end this process when the one that started it has. A rollout worker that is killed takes nothing
        along, and where its raylet is killed too nobody else does: an engine would keep its memory for ever."""
        parent = os.getppid()

        def watch() -> None:
            while os.getppid() == parent:
                time.sleep(LOOK_FOR_PARENT_S)
            os._exit(1)

        threading.Thread(target=watch, name="end with parent", daemon=True).start()

    def receive_weights(self, path: str) -> None:
        """Load the safetensors file at `path` into the served model: all weights, under the names and with the shapes
        of the Hugging Face checkpoint, or low-rank updates of those that the engine loaded at its start."""
        weights = load_file(path)
        weights_iterator: Iterator[tuple[str, torch.Tensor]]
        if is_low_rank(weights):
            loaded = Path(self.model_runner.model_config.model)
            # Some files hold a tied head beside the embedding that it is.
            skipped = ("lm_head.weight",) if self._head_is_tied() else ()
            weights_iterator = (
                (name, weight) for name, weight in updated_weights(loaded, weights) if name not in skipped
            )
        else:
            weights_iterator = iter(weights.items())
        self.model_runner.reload_weights(weights_iterator=weights_iterator)
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
