"""Everything that a run will ask, rendered and tokenized before it starts, and how each prompt is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.core.config import RunConfig
from cluster.core.types import Prompt, Sampling, Split
from cluster.training.prompt_source import TokenizedProblem, ask, sampling_seed
from reward.registry import build_task
from rollout.engine.tokenizer import NoEndTokenError, PromptEncoder


class UnusablePromptError(ValueError):
    """A prompt does not fit into the model's context, or no response to it could end."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Both splits, tokenized."""

    train: Sequence[TokenizedProblem]
    eval: Sequence[TokenizedProblem]


def load_dataset(config: RunConfig, model: Path) -> Dataset:
    """All problems of the configured task for the model in directory `model`.

    Raises:
        UnusablePromptError: one is too long, or the tokenizer has no end of sequence. (Preflight finds this earlier,
            unless the model had to be fetched first.)
    """
    task = build_task(config.task.name, config.task.options)
    try:
        encoder = PromptEncoder(model)
    except NoEndTokenError as error:
        raise UnusablePromptError(str(error)) from error
    room = config.model.max_context_tokens - config.rollout.max_response_tokens

    def encode(problems: Sequence[Any]) -> list[TokenizedProblem]:
        questions = [TokenizedProblem(problem, encoder.encode(task.render(problem))) for problem in problems]
        longest = max(len(question.encoded.token_ids) for question in questions)
        if longest > room:
            raise UnusablePromptError(
                f"the longest prompt has {longest} tokens and must leave room for rollout.max_response_tokens = "
                f"{config.rollout.max_response_tokens}; raise model.max_context_tokens to at least "
                f"{longest + config.rollout.max_response_tokens}"
            )
        return questions

    return Dataset(encode(task.problems("train")), encode(task.problems("eval")))


def training_sampling(config: RunConfig, prompt_id: str) -> Sampling:
    """How the responses to a training prompt are drawn. On-policy each has a seed of its own. Where weights change
    under what is being sampled a seed would decide nothing, and it costs a random generator per response."""
    seeded = config.rollout.max_staleness == 0
    return _sampling(config, prompt_id, config.rollout.responses_per_prompt, seeded)


def evaluation_prompts(config: RunConfig, dataset: Dataset, split: Split = "eval") -> list[Prompt]:
    """What an evaluation asks: the same prompts with the same seeds every time.

    They are the first of the held-out ones. Of the training ones they are some that lie evenly apart: neighbours may
    be the same problem in other words (`orders_per_puzzle`), and then they are not independent.
    """
    is_eval = split == "eval"
    asked = dataset.eval if is_eval else dataset.train
    count = min(config.evaluation.prompts, len(asked))
    return [
        ask(id_, asked[row], _sampling(config, id_, config.evaluation.responses_per_prompt, seeded=True))
        for place in range(count)
        for row in [place if is_eval else place * len(asked) // count]
        for id_ in [f"eval/{row}" if is_eval else f"eval/train/{row}"]
    ]


def _sampling(config: RunConfig, prompt_id: str, responses: int, seeded: bool) -> Sampling:
    seed = sampling_seed(config.seed, prompt_id) if seeded else None
    return Sampling(responses, config.rollout.temperature, config.rollout.max_response_tokens, seed)
