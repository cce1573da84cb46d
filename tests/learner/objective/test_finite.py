"""Extreme log-ratios and rewards give finite losses, gradients and advantages."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.core.config import ObjectiveConfig
from learner.objective.loss import PolicyLogprobs, policy_loss
from learner.objective.objectives import LOG_RATIO_LIMIT, OBJECTIVES, Scaling
from learner.objective.training_batch import LARGEST_ADVANTAGE, group_advantages

FAR = st.floats(-1e4, 1e4)
OPTIONS: list[dict[str, Any]] = [
    {},
    *({"importance_cap": 2.0, "importance_level": level} for level in ("token", "sequence")),
    *({"kl_coefficient": 0.1, "kl_estimator": estimator} for estimator in ("k1", "k2", "k3")),
]


def gradient(
    config: ObjectiveConfig, far: tuple[float, float, float], advantage: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """Return loss, gradient and statistics of two tokens, of which the first has the log-ratios `far` to the old
    policy, from the old policy to the sampler's, and to the reference."""
    new = torch.tensor([[-1.0, -2.0]], dtype=dtype, requires_grad=True)
    offsets = [torch.tensor([[offset, 0.0]], dtype=dtype) for offset in far]
    old = new.detach() - offsets[0]
    logprobs = PolicyLogprobs(new, old, old - offsets[1], new.detach() - offsets[2])
    one = torch.ones(1, dtype=dtype)
    mask = torch.ones(1, 2, dtype=torch.bool)
    result = policy_loss(config, logprobs, torch.ones(1, 2, dtype=dtype), one * advantage, one, mask)
    result.loss.backward()
    assert new.grad is not None
    return result.loss, new.grad, result.statistics


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", OBJECTIVES)
@given(far=st.tuples(FAR, FAR, FAR), advantage=st.sampled_from([-3.0, -0.5, 0.0, 0.5, 3.0]))
@example(far=(100.0, 100.0, -100.0), advantage=1.0)
@example(far=(-1e4, 1e4, -1e4), advantage=-1.0)
def test_any_log_ratio_gives_a_finite_gradient(
    name: str,
    options: dict[str, Any],
    dtype: torch.dtype,
    far: tuple[float, float, float],
    advantage: float,
) -> None:
    config = ObjectiveConfig.model_validate({"name": name, **options})
    loss, found, statistics = gradient(config, far, advantage, dtype)
    assert loss.isfinite()
    assert found.isfinite().all()
    assert all(map(math.isfinite, statistics.values()))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_ratio_beyond_the_limit_is_clipped_like_one_within(name: str) -> None:
    """The gradient of a positive advantage is the same at a log-ratio that overflows as just below the limit."""
    config = ObjectiveConfig.model_validate({"name": name})
    within, beyond = (
        gradient(config, (far, 0.0, 0.0), 1.0, torch.float32)[1] for far in (LOG_RATIO_LIMIT - 1, 100.0)
    )
    assert torch.allclose(within, beyond, atol=1e-6)


@pytest.mark.parametrize("scaling", get_args(Scaling))
@given(
    st.integers(2, 5).flatmap(
        lambda size: st.lists(
            st.lists(
                st.floats(allow_nan=False, allow_infinity=False)
                | st.sampled_from([0.0, 1.0, 1.7e308, -1.7e308]),
                min_size=size,
                max_size=size,
            ),
            min_size=1,
            max_size=3,
        )
    )
)
@example([[0.0, 1.9999999999940404e16], [1.6999999999991856e308, 1.6999999999992196e308]])
def test_finite_rewards_give_finite_advantages(scaling: Any, rewards: list[list[float]]) -> None:
    array = np.array(rewards)
    found = group_advantages(array, np.ones(array.shape, dtype=bool), scaling)
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= LARGEST_ADVANTAGE
    for group, advantages in zip(array, found, strict=True):
        if group.max() == group.min():
            assert not advantages.any()
        elif scaling == "group":
            assert advantages[group.argmax()] >= 0 >= advantages[group.argmin()]


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=6))
def test_the_scaled_advantages_of_a_group_do_not_depend_on_the_unit_of_huge_rewards(
    rewards: list[float],
) -> None:
    """Only the constant in the denominator does not scale along; it is 0 relative to huge rewards."""
    array = np.array([rewards])
    valid = np.ones(array.shape, dtype=bool)
    if np.ptp(array) < 1e-3:
        return
    huge = group_advantages(array * 1e200, valid, "group")
    huger = group_advantages(array * 1e300, valid, "group")
    assert np.allclose(huge, huger)
