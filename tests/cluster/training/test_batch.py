"""The next batch: the groups that it trains on, the groups that are dropped, and the batches that stop a run."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.types import PolicyVersion, Prompt, ScoredGroup, Verdict
from cluster.metrics.batch import batch_metrics
from cluster.training.batch import (
    MAX_MISSING_LOGPROBS_FRACTION,
    Batch,
    BatchCollector,
    BatchNotFilledError,
    LogprobGapError,
    MissingLogprobsError,
    VerifierFailureError,
    refuse_broken_probe,
    refuse_failed_verdicts,
    refuse_logprob_gap,
    refuse_missing_logprobs,
    uninformative,
)
from learner.engine.finite import NonFiniteError
from rollout.fleet.buffer import WorkBuffer
from tests.builders import make_group, make_prompt, make_response

REWARDS: dict[str, list[float | None]] = {
    "mixed": [1.0, 0.0],
    "all correct": [1.0, 1.0],
    "all incorrect": [0.0, 0.0],
    "no verdict": [None, None],
}
KINDS = st.sampled_from(list(REWARDS))


class Run:
    """A run with prompts 0, 1, 2 … of given kinds. One worker samples them and finishes them in a random order."""

    def __init__(self, kinds: Sequence[str], prompts: int, staleness: int, seed: int) -> None:
        self.kinds = itertools.chain(kinds, itertools.repeat("mixed"))
        self.kind_of: dict[str, str] = {}
        self.prompts = prompts
        self.staleness = staleness
        self.buffer = WorkBuffer(prompts, staleness)
        self.random = random.Random(seed)
        self.settled: list[str] = []
        self.leased: list[str] = []
        self.version = 0
        self.sampled_at: dict[str, int] = {}

    def resumed(self) -> Run:
        """Resume from a checkpoint between two steps: all prompts in flight are sampled again, in their order."""
        run = copy.copy(self)
        run.buffer = WorkBuffer(self.prompts, self.staleness)
        run.leased = []
        run.buffer.restore(self.buffer.trained_prompts, self.buffer.dropped_prompts)
        for prompt_id in self.buffer.in_flight:
            run.buffer.admit(make_prompt(prompt_id))
        return run

    def next_prompt(self) -> Prompt:
        prompt = make_prompt(f"train/0/{len(self.kind_of)}")
        self.kind_of[prompt.id] = next(self.kinds)
        return prompt

    def lease(self) -> None:
        """Lease all waiting prompts. A sample is as old as the weights that it starts with."""
        for prompt in self.buffer.lease("rollout-0", 10**6, self.version):
            self.leased.append(prompt.id)
            self.sampled_at[prompt.id] = self.version

    def step(self, limit: int | None) -> Batch:
        """Do one step as the controller does."""
        while self.buffer.free_slots:
            self.buffer.admit(self.next_prompt())
        collector = BatchCollector(self.buffer, self.next_prompt, self.version, self.prompts, limit)
        self.lease()
        while (batch := collector.take()) is None:
            assert not collector.has_news()
            self.lease()
            prompt_id = self.leased.pop(self.random.randrange(len(self.leased)))
            deliver(self.buffer, make_group(REWARDS[self.kind_of[prompt_id]], prompt=make_prompt(prompt_id)))
            assert collector.has_news()
        assert all(self.version - self.sampled_at[id_] <= self.staleness for id_ in batch.prompt_ids)
        self.buffer.settle(batch.prompt_ids)
        self.version += 1
        self.settled += [*batch.prompt_ids, *itertools.chain(*batch.dropped_ids.values())]
        return batch


def deliver(buffer: WorkBuffer, group: ScoredGroup) -> None:
    for index, (response, verdict) in enumerate(zip(group.responses, group.verdicts, strict=True)):
        assert buffer.deliver("rollout-0", group.prompt.id, index, response, verdict)


def informative(run: Run, prompt_ids: Sequence[str]) -> list[str]:
    return [id_ for id_ in prompt_ids if run.kind_of[id_] == "mixed"]


@given(st.lists(KINDS, max_size=40), st.integers(1, 5), st.integers(0, 10**6))
def test_an_on_policy_batch_is_the_first_informative_groups_in_any_order_of_completion(
    kinds: list[str], prompts: int, seed: int
) -> None:
    """Each earlier prompt is trained on or dropped exactly once, for the expected reason."""
    run = Run(kinds, prompts, staleness=0, seed=seed)
    first = 0
    for _ in range(3):
        batch = run.step(limit=100)
        admitted = list(run.kind_of)
        assert batch.prompt_ids == informative(run, admitted[first:])
        assert len(batch.groups) == prompts
        for reason, ids in batch.dropped_ids.items():
            assert {run.kind_of[id_] for id_ in ids} == {reason}
        assert batch.dropped_fraction == 1 - prompts / (len(admitted) - first)
        first = len(admitted)
        assert sorted(run.settled, key=admitted.index) == admitted


@given(
    st.lists(KINDS, max_size=60),
    st.integers(1, 4),
    st.sampled_from([None, 100]),
    st.integers(0, 2),
    st.lists(st.booleans(), min_size=8, max_size=8),
    st.integers(0, 10**6),
)
def test_no_prompt_is_lost_or_settled_twice_or_too_stale_even_after_resuming(
    kinds: list[str], prompts: int, limit: int | None, staleness: int, resumes: list[bool], seed: int
) -> None:
    """This holds for every order in which prompts finish."""
    run = Run(kinds, prompts, staleness, seed)
    for resume in resumes:
        batch = run.step(limit)
        assert len(batch.groups) == prompts
        assert limit is None or informative(run, batch.prompt_ids) == batch.prompt_ids
        if resume:
            run = run.resumed()
        assert len(set(run.settled)) == len(run.settled)
        assert set(run.settled) | set(run.buffer.in_flight) == set(run.kind_of)
        assert not set(run.settled) & set(run.buffer.in_flight)
        assert len(run.buffer.in_flight) <= (staleness + 1) * prompts
    assert run.buffer.trained_prompts == prompts * len(resumes)
    assert sum(run.buffer.dropped_prompts.values()) == len(run.settled) - run.buffer.trained_prompts
    assert limit is not None or not run.buffer.dropped_prompts


@given(st.integers(1, 4), st.integers(2, 4), st.integers(0, 2), st.integers(0, 3), st.integers(0, 10**6))
def test_a_batch_that_cannot_be_filled_ends_the_run(
    prompts: int, limit: int, staleness: int, found: int, seed: int
) -> None:
    """It ends after limit × prompts prompts, and the prompts that an asynchronous run has already admitted."""
    found = min(found, prompts - 1)
    run = Run(["mixed"] * found + ["all incorrect"] * 100, prompts, staleness, seed)
    with pytest.raises(BatchNotFilledError) as refusal:
        run.step(limit)
    sampled = (limit + staleness) * prompts
    assert len(run.kind_of) == sampled
    assert f"needs {prompts} groups" in str(refusal.value)
    assert f"only {found} were found" in str(refusal.value)
    assert f"{sampled - found} all incorrect" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_outcomes_and_not_rewards_make_a_group_informative() -> None:
    """Correct responses may have different rewards, and an incorrect response a reward for its form."""
    group = make_group([1.0, 1.0])
    shaped = (Verdict("incorrect", 0.0, None, ""), Verdict("incorrect", 0.2, None, "well formed"))
    assert uninformative(type(group)(group.group, shaped)) == "all incorrect"
    shaped = (Verdict("correct", 1.0, "4", ""), Verdict("correct", 0.5, "4", "too long"))
    assert uninformative(type(group)(group.group, shaped)) == "all correct"


@pytest.mark.parametrize(
    ("rewards", "reason"),
    [
        ([1.0, 0.0], None),
        ([1.0, 1.0], "all correct"),
        ([0.0, 0.0], "all incorrect"),
        ([1.0, None], "all correct"),  # among the valid verdicts
        ([0.0, None], "all incorrect"),
        ([None, None], "no verdict"),
        ([1.0, 0.0, None], None),
    ],
)
def test_the_reason_for_zero_reward_variance(rewards: list[float | None], reason: str | None) -> None:
    assert uninformative(make_group(rewards)) == reason


def test_a_slow_prompt_is_overtaken_until_it_would_be_too_stale() -> None:
    """With one prompt per batch and a staleness of up to 2, two batches may precede a slow prompt; the third must wait
    for it."""
    buffer = WorkBuffer(1, max_staleness=2)
    prompts = (make_prompt(f"train/0/{number}") for number in itertools.count())
    learned: list[str] = []

    def take() -> Batch | None:
        return BatchCollector(buffer, lambda: next(prompts), len(learned), prompts=1).take()

    for number in range(1, 4):
        while buffer.free_slots:
            buffer.admit(next(prompts))
        buffer.lease("rollout-0", 3, len(learned))
        deliver(buffer, make_group(prompt=make_prompt(f"train/0/{number}")))
        batch = take()
        if batch is not None:
            buffer.settle(batch.prompt_ids)
            learned += batch.prompt_ids
    assert learned == ["train/0/1", "train/0/2"]
    deliver(buffer, make_group(prompt=make_prompt("train/0/0")))
    batch = take()
    assert batch is not None
    assert batch.prompt_ids == ["train/0/0"]


def scored(*verdicts: Verdict) -> list[ScoredGroup]:
    """Return a group of ten verdicts: the given ones, and incorrect ones."""
    whole = make_group([0.0] * 10)
    return [ScoredGroup(whole.group, (*verdicts, *whole.verdicts[len(verdicts) :]))]


ERROR = Verdict("error", 0.0, None, "KeyError: 'answer' (mine.py:7)")
LIMIT = Verdict("limit", 0.0, None, "no verdict within 5 s")


def test_the_run_continues_up_to_the_allowed_fraction_of_failures() -> None:
    refuse_failed_verdicts(scored(ERROR, LIMIT), 0.2, "in step 3")
    refuse_failed_verdicts(scored(*[ERROR] * 10), 1.0, "in step 3")
    refuse_failed_verdicts(scored(), 0.0, "in step 3")


def test_more_failures_stop_the_run_and_the_most_frequent_reason_is_named() -> None:
    with pytest.raises(VerifierFailureError) as refusal:
        refuse_failed_verdicts(scored(LIMIT, ERROR, ERROR), 0.2, "in step 3")
    assert str(refusal.value) == (
        "in step 3, the verifier failed on 3 of 10 responses (reward.max_error_fraction: 0.2); on 2 of them with the "
        "error: KeyError: 'answer' (mine.py:7) (1 other reasons are in the transcripts and logs)"
    )
    with pytest.raises(VerifierFailureError, match=r"on 1 of them with the limit: no verdict within 5 s$"):
        refuse_failed_verdicts(scored(LIMIT), 0.0, "in step 3")


@pytest.mark.parametrize(("missing", "stops"), [(0, False), (1, False), (2, True), (100, True)])
def test_a_run_stops_if_log_probabilities_are_missing(missing: int, stops: bool) -> None:
    """The batch has 200 tokens, and one in a hundred may have no log-probability."""
    assert MAX_MISSING_LOGPROBS_FRACTION == 0.01
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


@pytest.mark.parametrize(("gap", "staleness", "stops"), [(0.1, 0, False), (0.2, 0, True), (9, 1, False)])
def test_a_run_stops_if_sampler_and_learner_differ_on_equal_weights(
    gap: float, staleness: int, stops: bool
) -> None:
    metrics = {"logprob_gap/mean": gap, "logprob_gap/max": 9.0, "staleness/max": float(staleness)}
    if not stops:
        refuse_logprob_gap(metrics, limit=0.1, step=4)
        return
    with pytest.raises(LogprobGapError, match=f"in step 4 sampler and learner differ by {gap:.3g}"):
        refuse_logprob_gap(metrics, limit=0.1, step=4)


@given(
    st.sampled_from(["logprob_gap/mean", "logprob_gap/max"]),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.integers(0, 3),
    st.floats(1e-6, math.inf),
)
def test_a_gap_that_is_no_number_stops_a_run_on_stale_samples_too(
    key: str, value: float, staleness: int, limit: float
) -> None:
    metrics = {"logprob_gap/mean": 0.0, "logprob_gap/max": 0.0, "staleness/max": float(staleness)} | {
        key: value
    }
    with pytest.raises(NonFiniteError, match="the learner's log-probability of a token is NaN or infinite"):
        refuse_logprob_gap(metrics, limit, step=4)


@given(st.lists(st.lists(st.floats(-20, 0), min_size=1), min_size=1), st.data())
def test_a_version_whose_own_probe_is_no_number_is_refused(
    probes: list[list[float]], data: st.DataObject
) -> None:
    """In whichever probe and at whichever token."""

    def version() -> PolicyVersion:
        return PolicyVersion(3, None, (), tuple(np.array(probe, dtype=np.float32) for probe in probes))

    refuse_broken_probe(version())
    probe = data.draw(st.sampled_from(probes))
    probe[data.draw(st.integers(0, len(probe) - 1))] = data.draw(st.sampled_from([math.nan, -math.inf]))
    with pytest.raises(NonFiniteError, match="log-probability of a token of the probe is NaN"):
        refuse_broken_probe(version())
