"""What stops a run before anything is learned from a broken batch."""

from __future__ import annotations

import math

import pytest

from cluster.controller import MAX_MISSING_LOGPROBS_SHARE, MissingLogprobsError, refuse_missing_logprobs
from cluster.step_metrics import batch_metrics
from tests.builders import make_group, make_response


@pytest.mark.parametrize(("missing", "stops"), [(0, False), (1, False), (2, True), (100, True)])
def test_a_run_stops_where_log_probabilities_are_missing(missing: int, stops: bool) -> None:
    """Of 200 tokens, up to one in a hundred may be."""
    assert MAX_MISSING_LOGPROBS_SHARE == 0.01
    logprobs = [math.nan] * 2 * missing + [-1.0] * (200 - 2 * missing)
    group = make_group([1.0], [make_response(200, logprobs)])
    metrics = batch_metrics([group], learner_version=3)
    if not stops:
        refuse_missing_logprobs(metrics, step=4)
        return
    with pytest.raises(
        MissingLogprobsError, match="in step 4 the sampler gave no log-probability"
    ) as refusal:
        refuse_missing_logprobs(metrics, step=4)
    assert f"{missing:.1f}% of the tokens" in str(refusal.value)
