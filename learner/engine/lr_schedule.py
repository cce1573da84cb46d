"""The learning rate over a run. Pure."""

from __future__ import annotations

import math

from cluster.core.config import LearnerConfig


def lr_factor(step: int, steps: int, learner: LearnerConfig) -> float:
    """By what `learner.learning_rate` is multiplied in optimizer step `step` (from 0) of `steps`.

    It rises linearly over the warm-up steps and then, unless it is constant, falls towards 0, which it would reach in
    the step after the last.
    """
    warmup = learner.warmup_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if learner.lr_schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    if learner.lr_schedule == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress))
