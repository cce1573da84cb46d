"""PPO's clipped surrogate, which most objectives have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from learner.objectives.objective import Surrogate, Tokens

if TYPE_CHECKING:
    from torch import Tensor


def clip_token_ratio(tokens: Tokens, clip_low: float | None, clip_high: float | None) -> Surrogate:
    """min( r_it A_i , clip(r_it, 1 − ε_low, 1 + ε_high) A_i )    with r_it = π_θ / π_old of the token."""
    return clipped(tokens.log_ratio_BT.exp(), tokens.advantages_B1, clip_low, clip_high)


def clipped(
    ratio_BT: Tensor, advantages_B1: Tensor, clip_low: float | None, clip_high: float | None
) -> Surrogate:
    assert clip_low is not None
    assert clip_high is not None
    low, high = 1 - clip_low, 1 + clip_high
    return Surrogate(
        value_BT=(ratio_BT * advantages_B1).minimum(ratio_BT.clamp(low, high) * advantages_B1),
        ratio_BT=ratio_BT,
        clipped_low_BT=(ratio_BT < low) & (advantages_B1 < 0),
        clipped_high_BT=(ratio_BT > high) & (advantages_B1 > 0),
    )
