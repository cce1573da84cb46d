"""Which prompts an evaluation asks, and how they are sampled."""

from __future__ import annotations

import pytest

from cluster.core.config import RunConfig
from cluster.training.dataset import Dataset, evaluation_prompts, training_sampling
from cluster.training.prompt_source import TokenizedProblem
from rollout.engine.tokenizer import EncodedPrompt


def questions(train: int, held_out: int) -> Dataset:
    def some(split: str, count: int) -> list[TokenizedProblem]:
        return [
            TokenizedProblem((split, row), EncodedPrompt(f"{split} {row}", (row,))) for row in range(count)
        ]

    return Dataset(some("train", train), some("eval", held_out))


def config(prompts: int, **rollout: int) -> RunConfig:
    evaluation = {"prompts": prompts, "responses_per_prompt": 3}
    return RunConfig.model_validate({"evaluation": evaluation, "rollout": rollout})


def rows(prompts: int, train: int = 12, held_out: int = 5, split: str = "eval") -> list[int]:
    asked = evaluation_prompts(config(prompts), questions(train, held_out), split)  # type: ignore[arg-type]
    assert all(prompt.problem[0] == split for prompt in asked)
    assert len({prompt.id for prompt in asked}) == len(asked)
    return [prompt.problem[1] for prompt in asked]


def test_the_first_held_out_prompts_are_asked() -> None:
    assert rows(3) == [0, 1, 2]
    assert rows(9) == [0, 1, 2, 3, 4]


def test_training_prompts_that_lie_evenly_apart_are_asked() -> None:
    assert rows(3, split="train") == [0, 4, 8]
    assert rows(5, split="train") == [0, 2, 4, 7, 9]
    assert rows(99, split="train") == list(range(12))


def test_the_same_is_asked_every_time_and_no_two_prompts_share_a_seed() -> None:
    both = [
        *evaluation_prompts(config(4), questions(12, 5)),
        *evaluation_prompts(config(4), questions(12, 5), "train"),
    ]
    assert both[:4] == evaluation_prompts(config(4), questions(12, 5))
    assert len({prompt.sampling.seed for prompt in both}) == 8
    assert {prompt.sampling.responses for prompt in both} == {3}


@pytest.mark.parametrize(("max_staleness", "seeded"), [(0, True), (1, False)])
def test_what_is_sampled_under_changing_weights_has_no_seed(max_staleness: int, seeded: bool) -> None:
    """An evaluation has: nothing is published meanwhile."""
    settings = config(1, max_staleness=max_staleness)
    (prompt,) = evaluation_prompts(settings, questions(1, 1))
    assert prompt.sampling.seed is not None
    assert (training_sampling(settings, "train/0/0").seed is not None) == seeded
