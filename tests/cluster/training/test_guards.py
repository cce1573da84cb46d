"""A run whose verifier fails too often is stopped, and says why."""

from __future__ import annotations

import pytest

from cluster.core.types import ScoredGroup, Verdict
from cluster.training.guards import VerifierFailureError, refuse_failed_verdicts
from tests.builders import make_group


def batch(*verdicts: Verdict) -> list[ScoredGroup]:
    """The given verdicts among ten; the others are wrong."""
    whole = make_group([0.0] * 10)
    return [ScoredGroup(whole.group, (*verdicts, *whole.verdicts[len(verdicts) :]))]


ERROR = Verdict("error", 0.0, None, "KeyError: 'answer' (mine.py:7)")
TIMEOUT = Verdict("timeout", 0.0, None, "no verdict within 5 s")


def test_up_to_the_share_they_are_left_out_and_the_run_goes_on() -> None:
    refuse_failed_verdicts(batch(ERROR, TIMEOUT), 0.2, "in step 3")
    refuse_failed_verdicts(batch(*[ERROR] * 10), 1.0, "in step 3")
    refuse_failed_verdicts(batch(), 0.0, "in step 3")


def test_above_it_the_run_stops_and_names_the_commonest_reason() -> None:
    with pytest.raises(VerifierFailureError) as refusal:
        refuse_failed_verdicts(batch(TIMEOUT, ERROR, ERROR), 0.2, "in step 3")
    assert str(refusal.value) == (
        "in step 3, the verifier failed on 3 of 10 responses (reward.max_error_fraction: 0.2); on 2 of them with the "
        "error: KeyError: 'answer' (mine.py:7) (1 other reasons are in the transcripts and logs)"
    )
    with pytest.raises(VerifierFailureError, match=r"on 1 of them with the timeout: no verdict within 5 s$"):
        refuse_failed_verdicts(batch(TIMEOUT), 0.0, "in step 3")
