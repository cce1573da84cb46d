"""The frozen reference: the model that the run started with, for the divergence from it."""

from __future__ import annotations

from typing import Any


class FrozenReference:
    """Without gradients or optimizer, in evaluation mode, in the learner's dtype. With ZeRO 3 it is partitioned over
    the ranks like the learner's own parameters; else every rank holds a whole one.

    All ranks make one, and call it equally often: with ZeRO 3 each call is a collective.
    """

    def __init__(self, model: str, dtype: str, zero_stage: int, device: Any) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        reference = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        reference.eval().requires_grad_(False)
        self._model = _partitioned(reference, dtype) if zero_stage == 3 else reference.to(device)

    def logprobs(self, batch: Any, temperature: float) -> Any:
        """Log π_ref of the response tokens of a `TokenBatch`, float32 [B, T]."""
        import torch

        from learner.logprobs import response_logprobs

        with torch.no_grad():
            return response_logprobs(self._model, batch, temperature)[0]


def _partitioned(model: Any, dtype: str) -> Any:
    """As DeepSpeed's ZeRO-3 inference has it: an engine without an optimizer."""
    import deepspeed

    engine, *_ = deepspeed.initialize(
        model=model,
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": 3},
            "bf16": {"enabled": dtype == "bfloat16"},
            "steps_per_print": 10**9,
        },
    )
    engine.eval()
    return engine
