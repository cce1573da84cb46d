"""The surrogates of single tokens and responses, by hand: values, slopes and the statistics of the clips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.config import ObjectiveConfig
from learner.objective.loss import PolicyLogprobs, policy_loss

DUAL_CLIP = {"grpo_dual_clip": "grpo", "hpo_dual_clip": "hpo", "a_hpo_dual_clip": "a_hpo"}
"""The objectives with a bound, each with the one that it is based on."""


def config_of(name: str, **settings: Any) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate({"name": name, **settings})


def one_token(
    name: str, ratio: float, advantage: float, **settings: Any
) -> tuple[float, float, dict[str, float]]:
    """Surrogate, its slope d / d log π_θ, and the statistics, of one token with scale 0.5."""
    new = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    zeros = torch.zeros(1, 1, dtype=torch.float64)
    result = policy_loss(
        config_of(name, **settings),
        PolicyLogprobs(new, zeros, zeros),
        zeros,
        torch.tensor([advantage], dtype=torch.float64),
        torch.tensor([0.5], dtype=torch.float64),
        torch.ones(1, 1, dtype=torch.bool),
    )
    (gradient,) = torch.autograd.grad(result.loss, new)
    return -2 * result.loss.item(), -2 * gradient.item(), result.statistics


@pytest.mark.parametrize(
    ("advantage", "ratio", "surrogate", "slope", "clips"),
    [
        (1.0, 1.00, 1.00, 1.00, (0, 0)),
        (1.0, 1.25, 1.25, 1.25, (0, 0)),
        (1.0, 1.50, 1.28, 0.00, (0, 1)),  # good enough already
        (1.0, 0.50, 0.50, 0.50, (0, 0)),  # the minimum keeps pulling back what went the wrong way
        (2.0, 1.50, 2.56, 0.00, (0, 1)),
        (-1.0, 1.00, -1.00, -1.00, (0, 0)),
        (-1.0, 0.85, -0.85, -0.85, (0, 0)),
        (-1.0, 0.50, -0.80, 0.00, (1, 0)),  # bad enough already
        (-1.0, 1.50, -1.50, -1.50, (0, 0)),
        (-2.0, 0.50, -1.60, 0.00, (1, 0)),
        (0.0, 9.00, 0.00, 0.00, (0, 0)),
    ],
)
@pytest.mark.parametrize("name", ["dapo", "gspo"])
def test_the_clip_by_hand(
    name: str, advantage: float, ratio: float, surrogate: float, slope: float, clips: tuple[int, int]
) -> None:
    """ε_low 0.2, ε_high 0.28. Of one token, the sequence's ratio is the token's."""
    value, gradient, statistics = one_token(name, ratio, advantage, clip_low=0.2, clip_high=0.28)
    assert value == pytest.approx(surrogate)
    assert gradient == pytest.approx(slope)
    assert (statistics["clipped_low"], statistics["clipped_high"]) == clips


@pytest.mark.parametrize(
    ("ratio", "weight", "capped"), [(0.01, 0.01, 0), (1.0, 1.0, 0), (4.0, 4.0, 0), (9.0, 5.0, 1)]
)
@pytest.mark.parametrize("advantage", [1.0, -2.0])
def test_cispo_caps_the_weight_and_keeps_the_gradient(
    ratio: float, weight: float, capped: int, advantage: float
) -> None:
    _, slope, statistics = one_token("cispo", ratio, advantage)
    assert slope == pytest.approx(weight * advantage)
    assert (statistics["clipped_low"], statistics["clipped_high"]) == (0, capped)


@given(ratio=st.floats(0.05, 8), advantage=st.floats(0.1, 2))
def test_sapo_lets_go_of_negative_advantages_sooner(ratio: float, advantage: float) -> None:
    """Both gates have slope 1 at r = 1 and fall from there on either side, the negative one faster."""
    slopes = {
        sign: one_token("sapo", ratio, sign * advantage)[1] / (sign * advantage * ratio) for sign in (1, -1)
    }
    assert slopes[-1] <= slopes[1] <= 1 + 1e-12
    assert one_token("sapo", 1.0, advantage)[1] == pytest.approx(advantage)
    assert one_token("sapo", 1.0, -advantage)[1] == pytest.approx(-advantage)


@pytest.mark.parametrize(
    ("advantages", "clipped"), [((1.0, 1.0), (0, 2)), ((-1.0, -1.0), (3, 0)), ((-1.0, 1.0), (0, 0))]
)
def test_a_clipped_sequence_counts_with_all_its_tokens(
    advantages: tuple[float, float], clipped: tuple[int, int]
) -> None:
    """The first has two tokens and a ratio above the bounds, though one token's is below; the second three, and
    below."""
    log_ratio = torch.tensor([[0.3, -0.1, 0.0], [-0.1, -0.1, -0.1]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    zeros = torch.zeros_like(log_ratio)
    statistics = policy_loss(
        config_of("gspo"),
        PolicyLogprobs(log_ratio, zeros, zeros),
        zeros,
        torch.tensor(advantages),
        torch.ones(2),
        mask,
    ).statistics
    assert (statistics["clipped_low"], statistics["clipped_high"]) == clipped


# --- Dual clip.


@pytest.mark.parametrize(
    ("advantage", "ratio", "surrogate", "slope", "clips"),
    [
        (-1.0, 0.50, -0.80, 0.00, (1, 0)),
        (-1.0, 1.00, -1.00, -1.00, (0, 0)),
        (-1.0, 2.90, -2.90, -2.90, (0, 0)),
        (-1.0, 3.10, -3.00, 0.00, (0, 1)),
        (-2.0, 50.0, -6.00, 0.00, (0, 1)),
        (1.0, 1.25, 1.25, 1.25, (0, 0)),
        (1.0, 50.0, 1.28, 0.00, (0, 1)),
        (0.0, 50.0, 0.00, 0.00, (0, 0)),
    ],
)
@pytest.mark.parametrize("name", DUAL_CLIP)
def test_dual_clip_by_hand(
    name: str, advantage: float, ratio: float, surrogate: float, slope: float, clips: tuple[int, int]
) -> None:
    """ε_low 0.2, ε_high 0.28, c = 3."""
    value, gradient, statistics = one_token(name, ratio, advantage, clip_low=0.2, clip_high=0.28)
    assert value == pytest.approx(surrogate)
    assert gradient == pytest.approx(slope)
    assert (statistics["clipped_low"], statistics["clipped_high"]) == clips


@pytest.mark.parametrize(("name", "base"), DUAL_CLIP.items())
@given(
    ratio=st.floats(1e-3, 1e6),
    advantage=st.integers(-500, 500).map(lambda number: number / 100),
    dual_clip=st.none() | st.integers(101, 10_000).map(lambda number: number / 100),
)
def test_dual_clip_bounds_the_surrogate_of_negative_advantages_and_changes_nothing_else(
    name: str, base: str, ratio: float, advantage: float, dual_clip: float | None
) -> None:
    bounded, plain = one_token(name, ratio, advantage, dual_clip=dual_clip), one_token(base, ratio, advantage)
    bound = 3 if dual_clip is None else dual_clip
    assert bounded[0] >= -bound * abs(advantage) * (1 + 1e-9)
    if ratio < bound * 0.9999 or advantage >= 0:
        assert bounded == plain
    elif ratio > bound * 1.0001 and advantage < 0:
        assert bounded[:2] == (pytest.approx(bound * advantage), 0)
        assert plain[0] <= bounded[0]


# --- The ratio of a whole response.


def one_response(
    name: str, log_ratios: list[float], advantage: float
) -> tuple[float, list[float], dict[str, float]]:
    """Return surrogate, its slopes and the statistics of a response with scale 1."""
    log_ratio = torch.tensor([log_ratios], dtype=torch.float64).requires_grad_()
    zeros = torch.zeros_like(log_ratio)
    one = torch.ones(1, dtype=torch.float64)
    result = policy_loss(
        config_of(name),
        PolicyLogprobs(log_ratio, zeros.detach(), zeros.detach()),
        zeros.detach(),
        one * advantage,
        one,
        torch.ones_like(log_ratio, dtype=torch.bool),
    )
    (gradient,) = torch.autograd.grad(result.loss, log_ratio)
    return -result.loss.item(), [-slope for slope in gradient[0].tolist()], result.statistics


@pytest.mark.parametrize(
    ("ratios", "advantage", "surrogate", "slope", "clips"),
    [
        ((1.0, 1.0, 1.0), 2.0, 2.0, 2.0, (0, 0)),
        ((2.0, 0.55), 2.0, 2.2, 2.2, (0, 0)),  # 1.1: each token alone is beyond the clip
        ((1.1, 1.1, 1.1), 2.0, 2.4, 0.0, (0, 3)),  # 1.331: no token alone is
        ((0.9, 0.8), -2.0, -1.6, 0.0, (2, 0)),
        ((0.9, 0.8), 2.0, 1.44, 1.44, (0, 0)),
        ((2.0, 2.0), -2.0, -8.0, -8.0, (0, 0)),
    ],
)
def test_rloo_treats_a_response_as_one_action(
    ratios: tuple[float, ...], advantage: float, surrogate: float, slope: float, clips: tuple[int, int]
) -> None:
    """min(s A, clip(s) A), with the product s of the tokens' ratios."""
    log_ratios = torch.tensor(ratios, dtype=torch.float64).log().tolist()
    value, slopes, statistics = one_response("rloo", log_ratios, advantage)
    assert value == pytest.approx(surrogate)
    assert slopes == pytest.approx([slope] * len(ratios))
    assert (statistics["clipped_low"], statistics["clipped_high"]) == clips


@given(
    parts=st.lists(st.floats(-0.3, 0.3), min_size=1, max_size=6),
    advantage=st.sampled_from([-2.0, -0.5, 0.5, 2.0]),
)
def test_the_ratio_of_rloo_depends_on_the_sum_of_log_ratios_alone(
    parts: list[float], advantage: float
) -> None:
    """Neither on their distribution over the tokens nor on the number of tokens."""
    value, _, _ = one_response("rloo", parts, advantage)
    assert value == pytest.approx(one_response("rloo", [sum(parts)], advantage)[0], rel=1e-9)
