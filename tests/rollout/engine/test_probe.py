"""The comparison of a probe: the served log-probabilities against the learner's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.config import RunConfig
from cluster.core.logprob_gap import LARGEST_TO_MEAN_GAP, MEAN_LOGPROB_GAP_LIMITS
from cluster.core.types import LogprobGap
from rollout.engine.worker import logprob_gap

PROBES = st.lists(st.lists(st.floats(-20, 0, width=32), min_size=1, max_size=9), min_size=1, max_size=4)


def arrays(probes: list[list[float]]) -> list[np.ndarray]:
    return [np.array(probe, dtype=np.float32) for probe in probes]


@given(PROBES)
def test_equal_values_have_no_gap(probes: list[list[float]]) -> None:
    assert logprob_gap(arrays(probes), arrays(probes)) == LogprobGap(0.0, 0.0)


@given(PROBES, st.data())
def test_the_mean_and_the_largest_difference_are_over_the_tokens_of_all_probes(
    probes: list[list[float]], data: st.DataObject
) -> None:
    others = data.draw(
        st.tuples(*(st.lists(st.floats(-20, 0, width=32), min_size=len(p), max_size=len(p)) for p in probes))
    )
    differences = [
        abs(ours - theirs)
        for probe, other in zip(probes, others, strict=True)
        for ours, theirs in zip(probe, other, strict=True)
    ]
    gap = logprob_gap(arrays(probes), arrays(list(others)))
    assert gap.largest == max(differences)
    assert gap.mean == pytest.approx(sum(differences) / len(differences))


@given(PROBES, st.sampled_from([math.nan, math.inf, -math.inf]), st.booleans(), st.data())
def test_a_value_that_is_no_number_exceeds_every_limit(
    probes: list[list[float]], value: float, both: bool, data: st.DataObject
) -> None:
    """In whichever probe, at whichever token, and on both sides too."""
    broken = arrays(probes)
    probe = data.draw(st.sampled_from(broken))
    probe[data.draw(st.integers(0, len(probe) - 1))] = value
    gap = logprob_gap(broken, broken if both else arrays(probes))
    assert gap.exceeds(LogprobGap(1e30, 1e30))


def test_a_probe_of_other_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        logprob_gap(arrays([[-1.0]]), [])
    with pytest.raises(ValueError, match="broadcast"):
        logprob_gap(arrays([[-1.0, -2.0]]), arrays([[-1.0, -2.0, -3.0]]))


# --- Limits.


@given(st.floats(0, 10), st.floats(0, 10), st.floats(0.1, 9), st.floats(0.1, 9))
def test_each_value_has_a_limit_of_its_own(
    mean: float, largest: float, limit: float, token_limit: float
) -> None:
    exceeds = LogprobGap(mean, largest).exceeds(LogprobGap(limit, token_limit))
    assert exceeds == (mean > limit or largest > token_limit)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_limits_depend_on_the_type_unless_they_are_set(dtype: str) -> None:
    mean = MEAN_LOGPROB_GAP_LIMITS[dtype]
    assert limits(dtype) == LogprobGap(mean, LARGEST_TO_MEAN_GAP * mean)
    assert limits(dtype, max_logprob_gap=7.0) == LogprobGap(7.0, LARGEST_TO_MEAN_GAP * 7.0)


def limits(dtype: str, gpus: float = 0.0, **learner: float) -> LogprobGap:
    settings = {"model": {"dtype": dtype}, "rollout": {"gpus_per_worker": gpus}, "learner": learner}
    return RunConfig.model_validate(settings).logprob_gap_limits


def test_on_gpus_float32_may_differ_as_much_as_attention_in_tf32() -> None:
    """The gaps are those of a simulation on CPU, so this does not show what a GPU computes."""
    for mean, largest in ((1.49e-3, 5.4e-3), (1.06e-3, 1.06e-2), (1.46e-3, 1.14e-2)):
        assert not LogprobGap(3 * mean, 3 * largest).exceeds(limits("float32", gpus=1))
        assert LogprobGap(10 * mean, largest).exceeds(limits("float32", gpus=1))
    assert limits("bfloat16", gpus=1) == limits("bfloat16")


def test_the_limits_allow_what_was_measured_and_not_much_more() -> None:
    """In bfloat16 with two kernels, and against float32."""
    for mean, largest in ((0.046, 0.27), (0.046, 0.37)):
        assert not LogprobGap(mean, largest).exceeds(limits("bfloat16"))
        assert LogprobGap(10 * mean, largest).exceeds(limits("bfloat16"))
        assert LogprobGap(mean, 10 * largest).exceeds(limits("bfloat16"))
        assert LogprobGap(mean, largest).exceeds(limits("float32"))
