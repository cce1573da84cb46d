"""Part 4: sharing a prompt's forward pass gives what every response alone gives, on the device and in each type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.gpu_check.findings import Findings, Settings
from benchmarks.gpu_check.models import (
    SMALL,
    TINY,
    Result,
    build_policy,
    compute,
    device_of,
    each_alone,
    random_bundle,
    relative_difference,
)
from benchmarks.gpu_check.ways import shared_ways
from learner.model.batching import MicroBatch
from learner.model.policy import Policy, TokenBatch

FLOAT32_LIMIT = 1e-3
"""The largest relative difference of gradients, and mean difference of log-probabilities, in float32."""
ROUNDING_FACTOR, ROUNDING_MARGIN = 2.0, 0.01
"""In bfloat16, sharing may be at most this many times as far from float32 as every response alone is, plus a margin."""
OFF = "Set learner.prefix_sharing: off, and report it with this report."


def check_paths(settings: Settings, findings: Findings) -> None:
    device, sizes = device_of(settings), TINY if settings.smoke else SMALL
    unit = 8 if settings.smoke else 128
    bundles = (
        random_bundle(4 * unit, (unit, 3 * unit, 1, 2 * unit), sizes["vocab_size"], seed=1),
        random_bundle(3 * unit + 1, (2 * unit, unit // 2), sizes["vocab_size"], seed=2),
    )
    exact: Result | None = None
    for dtype in (torch.float32, torch.bfloat16):
        findings.begin(f"every response alone in {dtype}")
        policy = build_policy(sizes, dtype, device)
        alone = compute(policy, TokenBatch.from_micro_batch(each_alone(bundles), device))
        exact = exact or alone
        for way in shared_ways(device, dtype):
            findings.begin(f"shared prompts in {dtype}, {way}")

            def computed(micro_batch: MicroBatch, policy: Policy = policy, way: str = way) -> Result:
                with shared_ways(device, policy.model.dtype)[way]:
                    return compute(policy, TokenBatch.from_micro_batch(micro_batch, device))

            _compare(findings, dtype, way, computed(bundles), alone, exact)
            _check_isolation(findings, dtype, way, computed, bundles)


def _compare(
    findings: Findings, dtype: torch.dtype, way: str, shared: Result, alone: Result, exact: Result
) -> None:
    """Record the differences of one way from every response alone, and of both from float32 (`exact`)."""
    gradients = relative_difference(shared.gradients, alone.gradients)
    logprobs = float((shared.logprobs_N - alone.logprobs_N).abs().mean())
    from_exact = relative_difference(shared.gradients, exact.gradients)
    alone_from_exact = relative_difference(alone.gradients, exact.gradients)
    name = str(dtype).removeprefix("torch.")
    findings.row(
        "differences of shared prompts from every response alone",
        {
            "type": name,
            "attention": way,
            "loss": shared.loss - alone.loss,
            "log-probabilities, mean": logprobs,
            "gradient, relative": gradients,
            "gradient from float32": from_exact,
            "alone from float32": alone_from_exact,
        },
    )
    if dtype == torch.float32:
        limit, found = FLOAT32_LIMIT, max(gradients, logprobs)
    else:
        limit, found = ROUNDING_FACTOR * alone_from_exact + ROUNDING_MARGIN, from_exact
    findings.check(
        f"shared prompts give the loss and gradients of every response alone ({name}, {way})",
        found <= limit,
        f"difference {found:.2g}, limit {limit:.2g}",
        OFF,
    )


def _check_isolation(
    findings: Findings,
    dtype: torch.dtype,
    way: str,
    computed: Callable[[MicroBatch], Result],
    bundles: MicroBatch,
) -> None:
    """Change one response, and check that the others' log-probabilities stay."""
    first, *others = bundles[0]
    changed = replace(first, response_token_ids=first.response_token_ids[::-1].copy())
    before = computed(bundles).logprobs_N
    after = computed(((changed, *others), *bundles[1:])).logprobs_N
    length = len(first.response_token_ids)
    leaked = float((after[length:] - before[length:]).abs().max())
    moved = float((after[:length] - before[:length]).abs().max())
    limit = 1e-4 if dtype == torch.float32 else 0.05
    name = str(dtype).removeprefix("torch.")
    findings.check(
        f"responses do not see each other ({name}, {way})",
        leaked <= limit < moved,
        f"another response changes them by {leaked:.2g}, their own tokens by {moved:.2g}",
        OFF,
    )
