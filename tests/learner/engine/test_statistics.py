"""Statistics of ranks and micro-batches: the merged result does not depend on how they are divided."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.engine.statistics import learner_metrics, merge

NAMES = ("tokens", "loss", "min_ratio", "max_ratio", "max_logprob_gap")
PARTS = st.lists(st.fixed_dictionaries({name: st.integers(-9, 9) for name in NAMES}), min_size=1, max_size=8)


@given(PARTS, st.integers(1, 8))
def test_it_does_not_matter_how_the_parts_are_grouped(parts: list[dict[str, int]], size: int) -> None:
    whole = merge(parts)
    assert whole == merge([merge(parts[start : start + size]) for start in range(0, len(parts), size)])
    assert whole == {
        "tokens": sum(part["tokens"] for part in parts),
        "loss": sum(part["loss"] for part in parts),
        "min_ratio": min(part["min_ratio"] for part in parts),
        "max_ratio": max(part["max_ratio"] for part in parts),
        "max_logprob_gap": max(part["max_logprob_gap"] for part in parts),
    }


def of_step(tokens: float, **others: float) -> dict[str, float]:
    zero = dict.fromkeys(
        (
            "loss",
            "entropy",
            "clipped_low",
            "clipped_high",
            "ratio",
            "kl_to_old",
            "logprob_gap",
            "learning_rate",
            "grad_norm",
        ),
        0.0,
    )
    extremes = {"max_logprob_gap": 0.5, "min_ratio": 0.75, "max_ratio": 1.5}
    return zero | extremes | {"tokens": tokens, "compared": tokens} | others


def test_metrics_of_two_ranks_and_two_steps() -> None:
    """Means over tokens, the loss per optimizer step, the norm that every rank reports, the newest learning rate."""
    metrics = learner_metrics(
        [
            of_step(10, loss=1.0, entropy=5.0, grad_norm=2.0, learning_rate=0.1, min_ratio=0.5),
            of_step(30, loss=2.0, entropy=15.0, ratio=30.0, grad_norm=4.0, learning_rate=0.2),
            of_step(10, loss=3.0, clipped_low=6.0, grad_norm=2.0, learning_rate=0.1, max_ratio=2.0),
            of_step(10, loss=4.0, kl_to_old=12.0, grad_norm=4.0, learning_rate=0.2),
        ],
        steps=2,
    )
    assert metrics == pytest.approx(
        {
            "objective/loss": 5.0,
            "objective/entropy": 20 / 60,
            "objective/clip_fraction_low": 6 / 60,
            "objective/clip_fraction_high": 0.0,
            "objective/kl_to_old": 12 / 60,
            "objective/ratio_mean": 30 / 60,
            "objective/ratio_min": 0.5,
            "objective/ratio_max": 2.0,
            "objective/learning_rate": 0.2,
            "objective/grad_norm": 3.0,
            "logprob_gap/mean": 0.0,
            "logprob_gap/max": 0.5,
            "learner_tokens": 60,
        }
    )


def test_options_that_are_on_are_told_of() -> None:
    metrics = learner_metrics([of_step(4, kl_to_reference=2.0, importance_weight=3.0, capped=1.0)], steps=1)
    assert metrics["objective/kl_to_reference"] == 0.5
    assert metrics["objective/importance_weight_mean"] == 0.75
    assert metrics["objective/importance_capped_fraction"] == 0.25


def test_the_gradient_share_is_of_the_steps_that_measured_it() -> None:
    """Two ranks with equal values and two steps, the first of which was measured."""
    measured = of_step(4, positive_grad_norm=3.0, negative_grad_norm=1.0)
    metrics = learner_metrics([measured, of_step(4), measured, of_step(4)], steps=2)
    assert metrics["objective/gradient_fraction_positive"] == 0.75
    neither = of_step(4, positive_grad_norm=0.0, negative_grad_norm=0.0)
    assert math.isnan(learner_metrics([neither], steps=1)["objective/gradient_fraction_positive"])
    assert "objective/gradient_fraction_positive" not in learner_metrics([of_step(4)], steps=1)


def test_without_any_token_there_is_no_ratio_and_no_gap() -> None:
    nothing = of_step(0, min_ratio=math.inf, max_ratio=-math.inf, max_logprob_gap=-math.inf)
    metrics = learner_metrics([nothing], steps=1)
    assert math.isnan(metrics["objective/ratio_min"])
    assert math.isnan(metrics["objective/ratio_max"])
    assert metrics["logprob_gap/max"] == metrics["logprob_gap/mean"] == 0


def test_the_gap_is_a_mean_over_the_tokens_that_are_compared() -> None:
    metrics = learner_metrics([of_step(4, compared=1, logprob_gap=0.5)], steps=1)
    assert metrics["logprob_gap/mean"] == 0.5
    nothing = of_step(4, compared=0, max_logprob_gap=-math.inf)
    assert learner_metrics([nothing], steps=1)["logprob_gap/max"] == 0


@given(PARTS, st.sampled_from(NAMES), st.data())
def test_a_value_that_is_no_number_is_never_lost(
    parts: list[dict[str, float]], name: str, data: st.DataObject
) -> None:
    """In whichever micro-batch of whichever rank."""
    data.draw(st.sampled_from(parts))[name] = math.nan
    assert math.isnan(merge(parts)[name])
