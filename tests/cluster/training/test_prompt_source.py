"""The order of training prompts: every row once per epoch, the same again after a crash, and seeds that never meet."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.types import Prompt, Sampling
from cluster.training.prompt_source import PromptSource, TokenizedProblem, sampling_seed
from rollout.engine.tokenizer import EncodedPrompt
from tests import PROJECT

ROWS = st.integers(1, 12)
SEED = st.integers(0, 2**32)


def source(rows: int, seed: int = 0, position: int = 0) -> PromptSource:
    questions = [
        TokenizedProblem(f"problem {row}", EncodedPrompt(f"question {row}", (row,))) for row in range(rows)
    ]
    return PromptSource(questions, seed, lambda id_: Sampling(2, 1.0, 16, sampling_seed(seed, id_)), position)


def draw(prompts: PromptSource, count: int) -> list[Prompt]:
    return [prompts.next() for _ in range(count)]


@given(ROWS, SEED, st.integers(1, 4))
def test_each_row_comes_once_per_epoch(rows: int, seed: int, epochs: int) -> None:
    prompts = source(rows, seed)
    for epoch in range(epochs):
        assert prompts.epoch == epoch
        assert sorted(prompt.token_ids for prompt in draw(prompts, rows)) == [(row,) for row in range(rows)]


@given(ROWS, SEED)
def test_no_id_comes_twice(rows: int, seed: int) -> None:
    ids = [prompt.id for prompt in draw(source(rows, seed), 3 * rows)]
    assert len(set(ids)) == len(ids)


@given(ROWS, SEED, st.integers(0, 40), st.integers(1, 20))
def test_the_order_depends_on_seed_and_position_alone(
    rows: int, seed: int, position: int, count: int
) -> None:
    """Not on who else draws from a source of its own meanwhile."""
    whole = draw(source(rows, seed), position + count)
    resumed, other = source(rows, seed, position), source(rows + 1, seed + 1)
    assert [(resumed.next(), other.next())[0] for _ in range(count)] == whole[position:]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        return tuple(prompt.token_ids[0] for prompt in draw(source(30, seed, position=30 * epoch), 30))

    orders = {order(seed, epoch) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert tuple(range(30)) not in orders


@given(ROWS, SEED, st.integers(1, 40))
def test_a_prompt_is_the_same_again_by_its_id(rows: int, seed: int, count: int) -> None:
    """Its text, problem and seed: what a resumed run samples is what the crashed one would have sampled."""
    for prompt in draw(source(rows, seed), count):
        assert source(rows, seed).by_id(prompt.id) == prompt
        assert prompt.problem == f"problem {prompt.token_ids[0]}"
        assert prompt.text == f"question {prompt.token_ids[0]}"


@given(ROWS, SEED, st.data())
def test_crashes_skip_no_prompt_and_repeat_none(rows: int, seed: int, data: st.DataObject) -> None:
    """A run with a checkpoint after every step, cut at any of them, trains on the same prompts as one that was
    left alone.

    Prompts finish in any order, so what is in flight at a checkpoint has holes.
    """
    trained: list[str] = []
    in_flight: list[Prompt] = []
    prompts = source(rows, seed)
    for _ in range(data.draw(st.integers(1, 8))):
        in_flight += draw(prompts, 3)
        finished = data.draw(st.lists(st.sampled_from(in_flight), unique=True))
        trained += [prompt.id for prompt in finished]
        in_flight = [prompt for prompt in in_flight if prompt not in finished]
        if data.draw(st.booleans()):  # a crash: only the position and the ids are left
            prompts = source(rows, seed, position=prompts.position)
            in_flight = [prompts.by_id(id_) for id_ in [prompt.id for prompt in in_flight]]
    accounted = Counter(trained) + Counter(prompt.id for prompt in in_flight)
    assert accounted == Counter(prompt.id for prompt in draw(source(rows, seed), prompts.position))


@given(SEED, st.text(max_size=20), st.text(max_size=20))
def test_seeds_of_different_prompts_are_far_apart(seed: int, one: str, other: str) -> None:
    """Response i is sampled with seed + i. Seeds are multiples of 4096, so that many responses fit between any two."""
    first, second = sampling_seed(seed, one), sampling_seed(seed, other)
    assert first % 4096 == second % 4096 == 0
    assert (first == second) == (one == other)


@given(SEED, st.text(max_size=20))
def test_a_seed_and_its_responses_fit_into_64_bits(seed: int, prompt_id: str) -> None:
    assert 0 <= sampling_seed(seed, prompt_id) < 2**63 - 4096


def test_seeds_are_the_same_in_every_process() -> None:
    code = "from cluster.training.prompt_source import sampling_seed; print(sampling_seed(3, 'train/0/17'))"
    for hash_seed in ("1", "2"):
        printed = subprocess.run(
            [sys.executable, "-c", code],
            cwd=PROJECT,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert int(printed) == sampling_seed(3, "train/0/17")


def test_the_seed_of_the_run_changes_that_of_its_prompts() -> None:
    assert sampling_seed(0, "train/0/0") != sampling_seed(1, "train/0/0")


def test_a_source_without_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="no training prompts"):
        source(0)
