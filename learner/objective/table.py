"""The objectives: what each is made of. One entry here is all that an objective is, beside its surrogate in
`learner/objective/surrogates.py` if no other has the same. Torch-free: the batch is weighed without it.

Formulas, sources, and what is ours: `docs/objectives.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from cluster.core.config import ObjectiveConfig, ObjectiveName
from learner.objective.advantages import Scaling, SignFractions, adaptive_alpha

SurrogateName = Literal["token_clip", "sequence_clip", "soft_gate", "detached_weight"]

ScaleRule = Callable[[np.ndarray, int], np.ndarray]
"""From the lengths |τ_i| of all responses of the batch and the most tokens that one may have, to what each token is
multiplied by. Both arrays [P, G]. A masked response has length 0: it leaves the sums over tokens and remains one of
the N responses."""

AlphaRule = Callable[[SignFractions, ObjectiveConfig], float]
"""From the batch's shares of signs to the weight α of negative advantages."""


def mean_of_means(lengths: np.ndarray, max_response_tokens: int) -> np.ndarray:
    """1 / (N |τ_i|): the mean over responses of the mean over tokens."""
    return 1.0 / (lengths.size * np.maximum(lengths, 1))


def mean_over_tokens(lengths: np.ndarray, max_response_tokens: int) -> np.ndarray:
    """1 / Σ|τ| = 1 / (N · L̄): every token of the batch weighs the same."""
    return np.full(lengths.shape, 1.0 / max(lengths.sum(), 1))


def constant_length(lengths: np.ndarray, max_response_tokens: int) -> np.ndarray:
    """1 / (N · L_max): no length that was sampled enters."""
    return np.full(lengths.shape, 1.0 / (lengths.size * max_response_tokens))


def no_hysteresis(shares: SignFractions, config: ObjectiveConfig) -> float:
    return 1.0


def fixed(shares: SignFractions, config: ObjectiveConfig) -> float:
    return config.alpha


def adaptive(shares: SignFractions, config: ObjectiveConfig) -> float:
    return adaptive_alpha(shares, config.alpha_min)


UNBOUNDED_LOW = 1.0
"""1 − 1 = 0, and no ratio is below it."""
UNBOUNDED_HIGH = float("inf")


@dataclass(frozen=True, slots=True)
class Objective:
    """Surrogate, scale per response, rule for α, and what the three settings that may be null are then."""

    surrogate: SurrogateName
    scale_rule: ScaleRule
    alpha_rule: AlphaRule = no_hysteresis
    clip_low: float = 0.2
    clip_high: float = 0.2
    advantage_scaling: Scaling = "group"

    @property
    def has_clip(self) -> bool:
        """Whether `clip_low` and `clip_high` have an effect."""
        return self.surrogate != "soft_gate"


OBJECTIVES: dict[ObjectiveName, Objective] = {
    "grpo": Objective("token_clip", mean_of_means),
    "dr_grpo": Objective("token_clip", constant_length, advantage_scaling="none"),
    "dapo": Objective("token_clip", mean_over_tokens, clip_high=0.28),
    "gspo": Objective("sequence_clip", mean_of_means, clip_low=3e-4, clip_high=4e-4),
    "sapo": Objective("soft_gate", mean_of_means, clip_low=UNBOUNDED_LOW, clip_high=UNBOUNDED_HIGH),
    "cispo": Objective("detached_weight", mean_over_tokens, clip_low=UNBOUNDED_LOW, clip_high=4.0),
    "hpo": Objective("token_clip", mean_over_tokens, fixed),
    "a_hpo": Objective("token_clip", mean_over_tokens, adaptive),
}


def resolve(config: ObjectiveConfig) -> Objective:
    """The configured objective, with every setting that is not null in the place of its default."""
    default = OBJECTIVES[config.name]
    return replace(
        default,
        clip_low=default.clip_low if config.clip_low is None else config.clip_low,
        clip_high=default.clip_high if config.clip_high is None else config.clip_high,
        advantage_scaling=config.advantage_scaling or default.advantage_scaling,
    )
