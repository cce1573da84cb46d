"""What an objective is: a surrogate per token, a scale per response, and defaults for the options.

    L(θ) = − Σ_i scale_i Σ_t surrogate_it( π_θ / π_old , w_i A_i )

`w_i A_i` and `scale_i` are computed once over the whole batch, before it is split (`learner/weighing.py`); the
surrogates token by token on the learner's ranks (`learner/objectives/loss.py`).

Shapes: B responses of one micro-batch, T their longest length; P prompts with G responses each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


class Surrogate(NamedTuple):
    """What is maximised, token by token, and what there is to say of it. Padding may hold anything finite."""

    value_BT: Tensor
    """With gradient."""
    ratio_BT: Tensor
    """π_θ / π_old as the objective takes it: a token's, or its whole response's."""
    clipped_low_BT: Tensor
    """True where the lower clip took the gradient away."""
    clipped_high_BT: Tensor
    """True where the upper clip took it away, or bounds its weight."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The response tokens of a micro-batch. Padding holds zeros, not rubbish."""

    logprobs_BT: Tensor
    """log π_θ, with gradient."""
    old_logprobs_BT: Tensor
    """log π_old, without."""
    advantages_B1: Tensor
    """w_i A_i."""
    mask_BT: Tensor
    """True on response tokens."""

    @property
    def log_ratio_BT(self) -> Tensor:
        return self.logprobs_BT - self.old_logprobs_BT


@dataclass(frozen=True, slots=True)
class Defaults:
    """Of the settings in `ObjectiveConfig` that are null, by the same names. None: the objective has no use for it."""

    clip_low: float | None = 0.2
    clip_high: float | None = 0.2
    advantage_scaling: Literal["group", "batch", "none"] = "group"
    alpha: float | Literal["adaptive"] = 1.0
    dynamic_sampling: bool = False


@dataclass(frozen=True, slots=True)
class Objective:
    """One row of the table in `docs/objectives.md`."""

    surrogate: Callable[[Tokens, float | None, float | None], Surrogate]
    """Of the tokens, clip_low and clip_high."""
    scales: Callable[[np.ndarray, int], np.ndarray]
    """From the response lengths (int [P, G], 0 where a response is masked) and the longest length that is allowed, what
    each token's surrogate is multiplied by (float64 [P, G])."""
    defaults: Defaults = Defaults()
