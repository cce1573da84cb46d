"""Learners for comparison: one optimizer step over the same samples with transformers and PyTorch alone, and with TRL.

Each is a function without arguments that makes a step and returns the gradient's norm before clipping. The learning
rate is next to nothing, so that all steps of all ways start from the same weights.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence

from cluster.core.types import TrainingSample

LEARNING_RATE = 1e-12
MAX_GRADIENT_NORM = 1.0
Step = Callable[[], float]


def full_forward(model: Any, samples: Sequence[TrainingSample], micro_batch_tokens: int) -> Step:
    """Run every prompt and response through the model with logits at every position. All sequences have one length, so
    nothing is padded."""
    parts = _parts(samples, micro_batch_tokens)
    optimizer = _optimizer(model)

    def step() -> float:
        for part in parts:
            ids_BL = torch.from_numpy(
                np.stack(
                    [np.concatenate([sample.prompt_token_ids, sample.response_token_ids]) for sample in part]
                )
            )
            width = len(part[0].response_token_ids)
            logits_BTV = model(input_ids=ids_BL, use_cache=False).logits[:, -width - 1 : -1]
            _backward(part, _chosen(logits_BTV, ids_BL[:, -width:]))
        return _finish(model, optimizer)

    return step


def floor(model: Any, samples: Sequence[TrainingSample]) -> Step:
    """Run the minimum without sharing: as many tokens as the samples have, without the last token of each, from which
    nothing is predicted, in sequences of one length in one pass, with as many logits as response tokens."""
    optimizer = _optimizer(model)
    width = round(sum(sample.tokens for sample in samples) / len(samples))
    response = round(sum(len(sample.response_token_ids) for sample in samples) / len(samples))
    ids_BL = torch.randint(model.config.vocab_size, (len(samples), width))

    def step() -> float:
        logits_BTV = model(input_ids=ids_BL[:, :-1], use_cache=False, logits_to_keep=response).logits
        _backward(samples, _chosen(logits_BTV, ids_BL[:, -response:]))
        return _finish(model, optimizer)

    return step


def trl(model: Any, samples: Sequence[TrainingSample], micro_batch_tokens: int, directory: str) -> Step:
    """Run TRL's GRPOTrainer after its responses have been sampled and scored: its own training step with its own
    log-probabilities and loss (`dapo`: a mean over all tokens, as HPO with α = 1), on what it would get. Gradients are
    not checkpointed, as they would be by default: that would be slower.

    Args:
        directory: where it may write.
    """
    from datasets import Dataset
    from trl import GRPOConfig  # type: ignore[attr-defined]

    parts = _parts(samples, micro_batch_tokens)
    config = GRPOConfig(
        output_dir=directory,
        per_device_train_batch_size=len(parts[0]),
        gradient_accumulation_steps=len(parts),
        num_generations=len(samples),
        max_completion_length=max(len(sample.response_token_ids) for sample in samples),
        loss_type="dapo",
        beta=0.0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
    )

    class Trainer(_trainer_class()):  # type: ignore[misc]
        """The trainer with given inputs, which it would otherwise sample."""

        def _prepare_inputs(self, generation_batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return generation_batch

    trainer = Trainer(
        model=model,
        args=config,
        processing_class=_tokenizer(),
        reward_funcs=lambda **_: [],
        train_dataset=Dataset.from_list([{"prompt": ""}]),
    )
    trainer.current_gradient_accumulation_steps = len(parts)
    optimizer = _optimizer(model)
    inputs = [_trl_inputs(part, samples) for part in parts]

    def step() -> float:
        for part in inputs:
            trainer.training_step(trainer.model, part, None)
        return _finish(model, optimizer)

    return step


def _trl_inputs(part: Sequence[TrainingSample], batch: Sequence[TrainingSample]) -> dict[str, Tensor]:
    """Return TRL's inputs: prompts padded on the left, responses on the right."""

    def padded(arrays: list[np.ndarray], side: str) -> tuple[Tensor, Tensor]:
        tensors = [torch.from_numpy(array) for array in arrays]
        ids = pad_sequence(tensors, batch_first=True, padding_side=side)
        mask = pad_sequence([torch.ones_like(t) for t in tensors], batch_first=True, padding_side=side)
        return ids, mask

    prompt_ids, prompt_mask = padded([sample.prompt_token_ids for sample in part], "left")
    completion_ids, completion_mask = padded([sample.response_token_ids for sample in part], "right")
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "advantages": torch.tensor([sample.advantage for sample in part]),
        "num_items_in_batch": torch.tensor(sum(len(sample.response_token_ids) for sample in batch)),
    }


def _trainer_class() -> type:
    """Import the trainer without vLLM, which TRL would load and which patches torch in the whole process."""
    import_utils = importlib.import_module("trl.import_utils")
    with mock.patch.object(import_utils, "is_vllm_available", return_value=False):
        from trl.trainer.grpo_trainer import GRPOTrainer

    return GRPOTrainer


def _tokenizer() -> Any:
    """Build the tokenizer that TRL requires; it is not used."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = models.WordLevel({"<eos>": 0, "<unk>": 1}, unk_token="<unk>")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), eos_token="<eos>", pad_token="<eos>", unk_token="<unk>"
    )


def _parts(samples: Sequence[TrainingSample], micro_batch_tokens: int) -> list[Sequence[TrainingSample]]:
    count = max(1, micro_batch_tokens // max(sample.tokens for sample in samples))
    return [samples[start : start + count] for start in range(0, len(samples), count)]


def _optimizer(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)


def _chosen(logits_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    return logits_BTV.log_softmax(-1).gather(-1, ids_BT[..., None]).squeeze(-1)


def _backward(samples: Sequence[TrainingSample], logprobs_BT: Tensor) -> None:
    """Backpropagate the gradient that every objective has if the policy is the sampled one."""
    weights_B = torch.tensor([sample.scale * sample.advantage for sample in samples])
    (-(weights_B * logprobs_BT.sum(dim=1)).sum()).backward()


def _finish(model: Any, optimizer: torch.optim.Optimizer) -> float:
    norm = clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
    optimizer.step()
    optimizer.zero_grad()
    return float(norm)
