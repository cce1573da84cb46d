"""Limits of the difference between the log-probabilities of sampler and learner at equal weights, and of how many may
be missing. Pure."""

from __future__ import annotations

from cluster.core.types import LogprobGap

MEAN_LOGPROB_GAP_LIMITS = {"float32": 2e-3, "bfloat16": 0.15}
"""The largest mean gap between sampler and learner that rounding explains, by `model.dtype`.

Measured on a probe: below 0.001 for any token in float32; in bfloat16 with two attention kernels 0.046 on average and
0.27 at most, and 0.37 at most against float32. The limits are three times these values and more."""
TF32_ATTENTION_GAP_LIMIT = 5e-3
"""The same limit for float32 if the engines are on GPUs, where vLLM's attention in float32 (Triton) multiplies in TF32.

Simulated on CPU with SmolLM2-135M, whose attention alone got factors cut to TF32: 0.0005 on average, and 0.013 for a
token (tests/learner/model/test_tf32_gap.py)."""
LARGEST_TO_MEAN_GAP = 10.0
"""The limit of a token of the probe, as a multiple of the limit of the mean. Measured: 6 to 8 in bfloat16."""

MAX_MISSING_LOGPROBS_FRACTION = 0.01
"""The largest fraction of tokens that may have no log-probability, in a response and in a batch. They are left out of
the loss. A larger fraction means that the sampler is broken."""


def gap_limits(mean: float | None, dtype: str, engines_on_gpus: bool) -> LogprobGap:
    """Return the limits of the gap on a probe.

    Args:
        mean: The configured limit of the mean, or None for the default of `dtype`.
        dtype: "float32" or "bfloat16".
    """
    if mean is None:
        in_tf32 = dtype == "float32" and engines_on_gpus
        mean = TF32_ATTENTION_GAP_LIMIT if in_tf32 else MEAN_LOGPROB_GAP_LIMITS[dtype]
    return LogprobGap(mean, LARGEST_TO_MEAN_GAP * mean)
