"""Random models and micro-batches for the parts that compute with the learner's modules."""

from __future__ import annotations

import ctypes
import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.gpu_check.findings import Settings
from cluster.core.config import LearnerConfig
from cluster.core.types import TrainingSample
from learner.model.batching import Bundle, MicroBatch
from learner.model.policy import Policy, TokenBatch, response_logprobs
from learner.model.policy_setup import prepare_policy

TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.125,
}
"""Grouped queries, and weights so large that predictions are far from uniform."""
SMALL: dict[str, Any] = TINY | {
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "initializer_range": 0.04,
}
"""Heads of width 64."""
WIDE: dict[str, Any] = SMALL | {
    "vocab_size": 32_768,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "initializer_range": 0.02,
}
"""Four layers of Qwen2.5-1.5B, with heads of width 128."""


def model_config(sizes: Mapping[str, Any]) -> LlamaConfig:
    return LlamaConfig(
        max_position_embeddings=65_536,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        dtype="float32",
        **sizes,
    )


def save_model(directory: Path, sizes: Mapping[str, Any], seed: int = 0) -> Path:
    """Write a model with random weights in float32 as a Hugging Face directory without a tokenizer."""
    torch.manual_seed(seed)
    LlamaForCausalLM(model_config(sizes)).save_pretrained(directory)
    return directory


def build_policy(
    sizes: Mapping[str, Any], dtype: torch.dtype, device: torch.device, checkpointing: bool = False
) -> Policy:
    """Build a policy whose weights are the same for every type and device, but for rounding."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(model_config(sizes)).to(dtype).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    policy, _ = prepare_policy(model, LearnerConfig(prefix_sharing="on"), max_context_tokens=None)
    return policy.to(device)


def random_bundle(
    prompt_tokens: int, response_tokens: Sequence[int], vocabulary: int, seed: int = 0
) -> Bundle:
    """Draw responses of the given lengths to one prompt. Their advantages have both signs."""
    generator = np.random.default_rng(seed)

    def drawn(length: int) -> np.ndarray:
        return generator.integers(1, vocabulary, length)

    prompt, scale = drawn(prompt_tokens), 1.0 / sum(response_tokens)
    return tuple(
        TrainingSample(
            prompt,
            drawn(length),
            np.full(length, -np.log(vocabulary), np.float32),
            advantage=(-1.0) ** index * (1.0 + index),
            scale=scale,
        )
        for index, length in enumerate(response_tokens)
    )


def each_alone(bundles: Sequence[Bundle]) -> MicroBatch:
    """Return a micro-batch in which each response has a sequence of its own."""
    return tuple((sample,) for bundle in bundles for sample in bundle)


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one forward and backward pass, in float32 on the CPU."""

    loss: float
    logprobs_N: torch.Tensor
    """The log-probabilities of all response tokens, in the order of the micro-batch."""
    gradients: dict[str, torch.Tensor]


def compute(policy: Policy, batch: TokenBatch) -> Result:
    """Run forward and backward of −Σ scale · advantage · log π."""
    policy.zero_grad()
    logprobs_BT, _ = response_logprobs(policy, batch, 1.0)
    loss = -(logprobs_BT * (batch.scales_B * batch.advantages_B)[:, None]).sum()
    loss.backward()
    return Result(
        loss=float(loss.detach()),
        logprobs_N=logprobs_BT.detach()[batch.response_mask_BT].float().cpu(),
        gradients={
            name: parameter.grad.float().cpu()
            for name, parameter in policy.named_parameters()
            if parameter.grad is not None
        },
    )


def relative_difference(some: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> float:
    """Return ‖some − others‖ / ‖others‖ over all tensors."""
    difference = sum(
        float((some[name].double() - other.double()).square().sum()) for name, other in others.items()
    )
    size = sum(float(other.double().square().sum()) for other in others.values())
    return math.sqrt(difference / size)


# --- Peak memory.

STATUS = Path("/proc/self/status")


class PeakMemory:
    """The peak of a block's memory above what there was before; see `peak_memory`."""

    above: int | None = None
    """In bytes; None if the system does not tell."""


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Measure the peak memory of the block: that of torch's allocator on GPUs, resident memory on CPU."""
    peak = PeakMemory()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.above = torch.cuda.max_memory_allocated(device) - before
        return
    ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # reset the peak
        before = _status_bytes("VmRSS")
    except OSError:  # some containers forbid it
        yield peak
        return
    yield peak
    peak.above = max(0, _status_bytes("VmHWM") - before)


def _status_bytes(name: str) -> int:
    (line,) = [
        line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(f"{name}:")
    ]
    return int(line.split()[1]) * 1024


def device_of(settings: Settings) -> torch.device:
    return torch.device("cuda", 0) if settings.on_gpu else torch.device("cpu")


def mib(size: float | None) -> float | str:
    """Return a size in MiB for a table."""
    return "unknown" if size is None else round(size / 2**20, 1)


def is_out_of_memory(run: Callable[[], Any], device: torch.device) -> bool:
    """Call `run`. Return True if the device's memory was too small for it."""
    try:
        run()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return True
    return False
