"""The state of the rescue survives an interruption at any point, bit for bit, and damaged files are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from cluster.core.types import ScoredGroup
from cluster.training.rescue import Rescue
from cluster.training.rescue_state import FILE_NAME, RescueState, read_state, to_bytes
from cluster.training.successes import Success, SuccessStore
from learner.state.state_files import CheckpointError
from tests.cluster.training.rescues import ALL, RESPONSES, group_of, prompt_of, rescue_config, same_response
from tests.synthetic import synthetic_examples

ROWS = 5
REWARDS = st.lists(st.sampled_from([0.0, 0.0, 1.0, None]), min_size=RESPONSES, max_size=RESPONSES)
HISTORY = st.lists(st.lists(REWARDS, min_size=1, max_size=3), max_size=8)
"""The rewards of the groups of each step. Rows come in turn."""


class Run:
    """The admissions and observations of a run, with two prompts in flight beyond each step: it may be asynchronous."""

    def __init__(self, rescue: Rescue) -> None:
        self.rescue = rescue
        self.next = 0
        self.step = 0
        self.in_flight: dict[str, Any] = {}

    def admit(self) -> None:
        epoch, row = divmod(self.next, ROWS)
        self.next += 1
        prompt = self.rescue.prepare(prompt_of(row, epoch), self.step)
        self.in_flight[prompt.id] = prompt

    def train(self, rewards: list[list[float | None]]) -> tuple[ScoredGroup, ...]:
        while len(self.in_flight) < len(rewards) + 2:
            self.admit()
        groups = []
        for of_group in rewards:
            prompt = self.in_flight.pop(next(iter(self.in_flight)))
            groups.append(group_of(prompt, of_group, self.step))
        trained = self.rescue.with_replays(groups, self.step)
        self.rescue.observe(groups, trained, self.step)
        self.step += 1
        assert self.rescue._prepared.keys() == self.in_flight.keys(), (
            "the help of settled prompts is forgotten"
        )
        return trained

    def resumed(self, checkpoint: Path) -> Run:
        """Save the run, and return another one that continues from there."""
        self.rescue.save(checkpoint, list(self.in_flight))
        other = Run(new_rescue())
        other.rescue.restore(checkpoint, ROWS)
        other.next, other.step = self.next, self.step
        for id_ in self.in_flight:
            _, epoch, row = id_.split("/")
            other.in_flight[id_] = other.rescue.prepare(prompt_of(int(row), int(epoch)), self.step)
        return other


def new_rescue() -> Rescue:
    config = rescue_config(**ALL)
    return Rescue(config, synthetic_examples(config, ROWS))


def content(rescue: Rescue) -> bytes:
    return to_bytes(RescueState(list(rescue._successes), rescue._prepared))


@settings(max_examples=50, deadline=None)
@given(before=HISTORY, after=HISTORY)
def test_a_resumed_run_continues_as_if_it_had_not_been_interrupted(
    before: list[list[list[float | None]]],
    after: list[list[list[float | None]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The prompts in flight, all later prompts, the replays and the state are the same, bit for bit."""
    run = Run(new_rescue())
    for rewards in before:
        run.train(rewards)
    resumed = run.resumed(tmp_path_factory.mktemp("checkpoint"))
    assert resumed.in_flight == run.in_flight
    assert content(resumed.rescue) == content(run.rescue)
    for rewards in after:
        for one, other in zip(run.train(rewards), resumed.train(rewards), strict=True):
            assert one.prompt == other.prompt
            assert one.verdicts == other.verdicts
            assert all(map(same_response, one.responses, other.responses))
    assert content(resumed.rescue) == content(run.rescue)


def test_some_of_these_runs_get_help() -> None:
    """Otherwise the law above could not fail."""
    run, kinds = Run(new_rescue()), set()
    for rewards in ([1.0, 0.0, 0.0, 0.0], [0.0] * 4, [0.0] * 4, [0.0] * 4):
        for group in run.train([rewards] * ROWS):
            kinds |= {"prefix" for response in group.responses if response.prefix}
            kinds |= {"replay" for response in group.responses if response.replayed_from is not None}
            kinds |= {"examples"} if group.prompt.has_examples else set()
    assert kinds == {"prefix", "replay", "examples"}


def test_logprobs_that_are_no_numbers_are_kept(tmp_path: Path) -> None:
    response = group_of(prompt_of(1), [1.0]).responses[0]
    response.logprobs[0] = np.nan
    state = RescueState([(1, Success((5, 6), response, 0.25, True))], {})
    (tmp_path / FILE_NAME).write_bytes(to_bytes(state))
    ((row, success),) = read_state(tmp_path / FILE_NAME, ROWS).successes
    assert (row, success.prompt_token_ids, success.reward, success.fails_now) == (1, (5, 6), 0.25, True)
    assert same_response(success.response, response)


def saved(tmp_path: Path) -> Path:
    run = Run(new_rescue())
    for rewards in ([1.0, 0.0, 0.0, 0.0], [0.0] * 4):
        run.train([rewards] * ROWS)
    run.admit()
    run.rescue.save(tmp_path, list(run.in_flight))
    return tmp_path / FILE_NAME


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_damaged_file_is_refused_in_one_line(kept: int, tmp_path: Path) -> None:
    file = saved(tmp_path)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=rf"^{file}: this is not the rescue state .*restore") as refusal:
        new_rescue().restore(tmp_path, ROWS)
    assert "\n" not in str(refusal.value)


def changed(name: str, change: Any) -> Any:
    return lambda arrays: arrays | {name: change(arrays[name])}


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: {"weight": np.zeros(3, dtype=np.float32)},
        lambda arrays: {},
        lambda arrays: {name: array for name, array in arrays.items() if name != "text"},
        changed("rows", lambda rows: rows + ROWS),
        changed("rows", lambda rows: rows - ROWS),
        changed("rows", lambda rows: rows * 0),
        changed("rows", lambda rows: rows[1:]),
        changed("rewards", lambda rewards: rewards[1:]),
        changed("rewards", lambda rewards: rewards.astype(np.float32)),
        changed("finish", lambda finish: finish + 2),
        changed("tokens", lambda tokens: tokens[1:]),
        changed("tokens.lengths", lambda lengths: -lengths),
        changed("logprobs.lengths", lambda lengths: lengths[::-1].copy()),
        changed("steps", lambda steps: steps[1:]),
        changed("text", lambda text: text * 0 + 255),
        changed("ids", lambda text: text * 0 + 255),
        changed("prefix_lengths", lambda lengths: lengths + 1),
    ],
)
def test_a_foreign_file_is_refused(change: Any, tmp_path: Path) -> None:
    file = saved(tmp_path)
    arrays = load(file.read_bytes())
    assert len(set(arrays["tokens.lengths"].tolist())) > 1
    file.write_bytes(save(change(arrays)))
    with pytest.raises(CheckpointError, match="this is not the rescue state"):
        new_rescue().restore(tmp_path, ROWS)


def test_a_run_that_turns_the_rescue_on_starts_without_successes(tmp_path: Path) -> None:
    rescue = new_rescue()
    rescue.restore(tmp_path, ROWS)
    assert content(rescue) == content(new_rescue())


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12), limit=st.integers(1, 40))
def test_the_store_is_bounded_and_forgets_the_oldest(lengths: list[int], limit: int) -> None:
    store = SuccessStore(limit)
    for row, length in enumerate(lengths):
        response = group_of(prompt_of(row), [1.0]).responses[0]
        store.put(row, Success((5,) * length, response, 1.0, False))
        assert sum(success.tokens for _, success in store) <= limit
    kept = [row for row, _ in store]
    assert kept == list(range(len(lengths)))[len(lengths) - len(kept) :]
