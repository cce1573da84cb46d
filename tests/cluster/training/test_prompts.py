"""The prompts of evaluations, and the order and seeds of training prompts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.commands.evaluate.command import evaluate
from cluster.core.config import RunConfig
from cluster.core.types import Prompt, Sampling, Split
from cluster.training.prompts import (
    Dataset,
    PromptSource,
    TokenizedProblem,
    evaluation_prompts,
    sampling_seed,
    training_sampling,
)
from rollout.engine.tokenizer import EncodedPrompt
from tests import PROJECT

ROWS = st.integers(1, 12)
SEED = st.integers(0, 2**32)


def source(rows: int, seed: int = 0, position: int = 0) -> PromptSource:
    problems = [
        TokenizedProblem(f"problem {row}", EncodedPrompt(f"question {row}", (row,))) for row in range(rows)
    ]
    return PromptSource(problems, seed, lambda id_: Sampling(2, 1.0, 16, sampling_seed(seed, id_)), position)


def draw(prompts: PromptSource, count: int) -> list[Prompt]:
    return [prompts.next() for _ in range(count)]


@given(ROWS, SEED, st.integers(1, 4))
def test_each_problem_occurs_once_per_epoch(rows: int, seed: int, epochs: int) -> None:
    prompts = source(rows, seed)
    for epoch in range(epochs):
        assert prompts.epoch == epoch
        assert sorted(prompt.token_ids for prompt in draw(prompts, rows)) == [(row,) for row in range(rows)]


@given(ROWS, SEED)
def test_no_id_occurs_twice(rows: int, seed: int) -> None:
    ids = [prompt.id for prompt in draw(source(rows, seed), 3 * rows)]
    assert len(set(ids)) == len(ids)


@given(ROWS, SEED, st.integers(0, 40), st.integers(1, 20))
def test_the_order_depends_on_seed_and_position_alone(
    rows: int, seed: int, position: int, count: int
) -> None:
    """Other sources that are used at the same time make no difference."""
    whole = draw(source(rows, seed), position + count)
    resumed, other = source(rows, seed, position), source(rows + 1, seed + 1)
    assert [(resumed.next(), other.next())[0] for _ in range(count)] == whole[position:]


def test_each_epoch_and_seed_has_its_own_order() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        return tuple(prompt.token_ids[0] for prompt in draw(source(30, seed, position=30 * epoch), 30))

    orders = {order(seed, epoch) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert tuple(range(30)) not in orders


@given(ROWS, SEED, st.integers(1, 40))
def test_an_id_identifies_a_prompt(rows: int, seed: int, count: int) -> None:
    """Text, problem and seed are equal, so a resumed run samples what the crashed run would have sampled."""
    for prompt in draw(source(rows, seed), count):
        assert source(rows, seed).by_id(prompt.id) == prompt
        assert prompt.problem == f"problem {prompt.token_ids[0]}"
        assert prompt.text == f"question {prompt.token_ids[0]}"


@given(ROWS, SEED, st.data())
def test_crashes_neither_skip_nor_repeat_prompts(rows: int, seed: int, data: st.DataObject) -> None:
    """A run with a checkpoint after every step, interrupted at any of them, trains on the same prompts as an
    uninterrupted run.

    Prompts finish in any order, so the ids in flight at a checkpoint are not consecutive.
    """
    trained: list[str] = []
    in_flight: list[Prompt] = []
    prompts = source(rows, seed)
    for _ in range(data.draw(st.integers(1, 8))):
        in_flight += draw(prompts, 3)
        finished = data.draw(st.lists(st.sampled_from(in_flight), unique=True))
        trained += [prompt.id for prompt in finished]
        in_flight = [prompt for prompt in in_flight if prompt not in finished]
        if data.draw(st.booleans()):  # a crash: only the position and the ids remain
            prompts = source(rows, seed, position=prompts.position)
            in_flight = [prompts.by_id(id_) for id_ in [prompt.id for prompt in in_flight]]
    accounted = Counter(trained) + Counter(prompt.id for prompt in in_flight)
    assert accounted == Counter(prompt.id for prompt in draw(source(rows, seed), prompts.position))


@given(SEED, st.text(max_size=20), st.text(max_size=20))
def test_seeds_of_different_prompts_are_far_apart(seed: int, one: str, other: str) -> None:
    """Response i is sampled with seed + i. Seeds are multiples of 4096, so the seeds of responses do not collide."""
    first, second = sampling_seed(seed, one), sampling_seed(seed, other)
    assert first % 4096 == second % 4096 == 0
    assert (first == second) == (one == other)


@given(SEED, st.text(max_size=20))
def test_a_seed_and_its_responses_fit_into_64_bits(seed: int, prompt_id: str) -> None:
    assert 0 <= sampling_seed(seed, prompt_id) < 2**63 - 4096


def test_seeds_are_the_same_in_every_process() -> None:
    code = "from cluster.training.prompts import sampling_seed; print(sampling_seed(3, 'train/0/17'))"
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


def test_the_seed_of_the_run_changes_the_seeds_of_its_prompts() -> None:
    assert sampling_seed(0, "train/0/0") != sampling_seed(1, "train/0/0")


def test_a_source_without_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="no training prompts"):
        source(0)


def tokenized_dataset(train: int, eval_: int) -> Dataset:
    """Return a dataset of `train` and `eval_` problems. A problem is its split and its row."""

    def split(name: str, count: int) -> list[TokenizedProblem]:
        return [TokenizedProblem((name, row), EncodedPrompt(f"{name} {row}", (row,))) for row in range(count)]

    return Dataset(split("train", train), split("eval", eval_))


def configuration(prompts: int, **rollout: int) -> RunConfig:
    evaluation = {"prompts": prompts, "responses_per_prompt": 3}
    return RunConfig.model_validate({"evaluation": evaluation, "rollout": rollout})


def evaluated_rows(prompts: int, split: Split = "eval") -> list[int]:
    """Return the rows of the problems in an evaluation, for 12 training and 5 evaluation problems."""
    chosen = evaluation_prompts(configuration(prompts), tokenized_dataset(12, 5), split)
    assert all(prompt.problem[0] == split for prompt in chosen)
    assert len({prompt.id for prompt in chosen}) == len(chosen)
    return [prompt.problem[1] for prompt in chosen]


def test_an_evaluation_uses_the_first_problems_of_the_eval_split() -> None:
    assert evaluated_rows(3) == [0, 1, 2]
    assert evaluated_rows(9) == [0, 1, 2, 3, 4]


def test_an_evaluation_uses_training_problems_at_equal_distances() -> None:
    assert evaluated_rows(3, split="train") == [0, 4, 8]
    assert evaluated_rows(5, split="train") == [0, 2, 4, 7, 9]
    assert evaluated_rows(99, split="train") == list(range(12))


def test_all_evaluations_use_the_same_prompts_and_each_prompt_has_its_own_seed() -> None:
    dataset = tokenized_dataset(12, 5)
    both = [
        *evaluation_prompts(configuration(4), dataset),
        *evaluation_prompts(configuration(4), dataset, "train"),
    ]
    assert both[:4] == evaluation_prompts(configuration(4), tokenized_dataset(12, 5))
    assert len({prompt.sampling.seed for prompt in both}) == 8
    assert {prompt.sampling.responses for prompt in both} == {3}


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
@pytest.mark.parametrize("split", ["eval", "train"])
def test_evaluations_are_always_seeded_as_the_help_says(max_staleness: int, split: Split) -> None:
    config = configuration(4, max_staleness=max_staleness)
    prompts = evaluation_prompts(config, tokenized_dataset(12, 5), split)
    assert prompts
    assert all(prompt.sampling.seed is not None for prompt in prompts)
    said = " ".join((RunConfig.model_fields["seed"].description or "").split())
    assert said.endswith(
        "of the responses of evaluations and, with `rollout.max_staleness` 0, of those of training."
    )
    assert "Every response has a seed" in " ".join((evaluate.__doc__ or "").split())


@pytest.mark.parametrize(("max_staleness", "seeded"), [(0, True), (1, False)])
def test_training_prompts_have_no_seed_if_weights_change_during_sampling(
    max_staleness: int, seeded: bool
) -> None:
    """Prompts of evaluations always have one, because no weights are published during an evaluation."""
    config = configuration(1, max_staleness=max_staleness)
    (prompt,) = evaluation_prompts(config, tokenized_dataset(1, 1))
    assert prompt.sampling.seed is not None
    assert (training_sampling(config, "train/0/0").seed is not None) == seeded
    seeds = [training_sampling(config, "train/0/0", draw).seed for draw in range(4)]
    assert len(set(seeds)) == (4 if seeded else 1), "each draw has seeds of its own"
