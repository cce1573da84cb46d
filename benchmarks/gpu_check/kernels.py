"""Part 5: which kernels compute attention, and how much memory a forward and backward pass takes at each length.

`shared` is a sequence of a prompt and four responses to it, `alone` one of a prompt and one response. Both have the
same number of tokens, so that they differ in attention alone.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_check.findings import Findings, Settings
from benchmarks.gpu_check.models import (
    TINY,
    WIDE,
    build_policy,
    device_of,
    is_out_of_memory,
    mib,
    peak_memory,
    random_bundle,
)
from learner.model.batching import MicroBatch
from learner.model.policy import Policy, TokenBatch, response_logprobs

LENGTHS, SMOKE_LENGTHS = (1024, 4096, 16_384, 32_768), (64, 256)
CPU_LENGTHS = (512, 1024)
SIZES: dict[str, Any] = WIDE | {"num_hidden_layers": 2}
FUSED = re.compile(r"flash|fmha|efficient_attention|cudnn.*(attention|sdpa)|mha_(fwd|bwd)", re.IGNORECASE)
"""Kernels of attention that do not keep the scores of all pairs of tokens."""
GROWTH_LIMIT = 1.5
"""The largest ratio of the memory per token at the largest length to that at the second: 1 if memory is linear."""
TABLE = "peak memory of forward and backward above the model"


def check_kernels(settings: Settings, findings: Findings) -> None:
    device = device_of(settings)
    sizes = TINY if settings.smoke else SIZES
    lengths = SMOKE_LENGTHS if settings.smoke else LENGTHS if settings.on_gpu else CPU_LENGTHS
    policy = build_policy(sizes, torch.bfloat16 if settings.on_gpu else torch.float32, device)
    per_token: dict[str, dict[int, float]] = {}
    for length in lengths:
        for way, batch in _batches(length, sizes["vocab_size"], device).items():
            findings.begin(f"{way}, {length} tokens")
            peak, names = _measure(policy, batch, device)
            findings.row(
                TABLE,
                {"tokens": length, "sequence": way, "peak MiB": peak, "attention kernels": ", ".join(names)},
            )
            if isinstance(peak, float):
                per_token.setdefault(way, {})[length] = peak / length
            _check_fused(findings, way, length, peak, names)
    if settings.on_gpu:
        _check_growth(findings, per_token, lengths)


def _batches(length: int, vocabulary: int, device: torch.device) -> dict[str, TokenBatch]:
    """Build one sequence of `length` columns per way. The last token of a response is not computed."""
    quarter = length // 8 + 1
    shared: MicroBatch = (random_bundle(length - 4 * (quarter - 1), (quarter,) * 4, vocabulary),)
    alone: MicroBatch = (random_bundle(length // 2, (length - length // 2 + 1,), vocabulary),)
    return {
        "alone": TokenBatch.from_micro_batch(alone, device),
        "shared": TokenBatch.from_micro_batch(shared, device),
    }


def _measure(policy: Policy, batch: TokenBatch, device: torch.device) -> tuple[float | str, list[str]]:
    """Return the peak memory in MiB and the names of attention's kernels, without the first pass, which allocates."""

    def once() -> None:
        logprobs_BT, _ = response_logprobs(policy, batch, 1.0)
        logprobs_BT.sum().backward()

    if is_out_of_memory(once, device):
        return "out of memory", []
    with peak_memory(device) as peak:
        once()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=kinds) as profiler:
        once()
    return mib(peak.above), _attention_kernels(profiler)


def _attention_kernels(profiler: profile) -> list[str]:
    """Return the fused kernels that ran on the device, or the operators that call them if no device was seen."""
    events = [
        event
        for event in profiler.key_averages()
        if FUSED.search(event.key)
        and (event.device_type == DeviceType.CUDA or event.key.startswith("aten::"))
    ]
    on_device = [event for event in events if event.device_type == DeviceType.CUDA]
    return sorted({_short(event.key) for event in on_device or events})


def _short(name: str) -> str:
    """Return the name of a kernel without its template's arguments."""
    return re.sub(r"^void\s+", "", name).partition("<")[0].partition("(")[0][:80]


def _check_fused(findings: Findings, way: str, length: int, peak: float | str, names: list[str]) -> None:
    findings.check(
        f"{way}, {length} tokens: it fits, with a fused kernel of attention",
        peak != "out of memory" and bool(names),
        f"peak {peak} MiB; {len(names)} kernel(s)" if names else f"peak {peak} MiB; no fused kernel was seen",
        "Lower model.max_context_tokens; if the length is needed, set model.dtype: bfloat16 and "
        "learner.gradient_checkpointing: true.",
    )


def _check_growth(
    findings: Findings, per_token: dict[str, dict[int, float]], lengths: tuple[int, ...]
) -> None:
    for way, found in per_token.items():
        if lengths[1] in found and lengths[-1] in found:
            growth = found[lengths[-1]] / found[lengths[1]]
            findings.check(
                f"{way}: memory is linear in the length",
                growth <= GROWTH_LIMIT,
                f"{growth:.2f} times as much per token at {lengths[-1]} as at {lengths[1]}",
                "Set learner.prefix_sharing: off for long responses, and report it with this report.",
            )
