"""The prompts of a run: the dataset, tokenized before the run starts; the prompts of evaluations; the training prompts
in their order."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cluster.configuration.task_prompts import encoded_problems
from cluster.core.config import RunConfig
from cluster.core.types import Prompt, Sampling, Split, row_of
from cluster.run_state.checkpoints import Checkpoint
from cluster.run_state.selection_state import SelectionState
from cluster.training.batch import Batch
from cluster.training.selection import PRIOR
from reward.registry import build_task
from rollout.engine.chat_template import PromptError
from rollout.engine.tokenizer import EncodedPrompt, PromptEncoder


class UnusablePromptError(ValueError):
    """A prompt does not fit into the model's context, cannot be rendered, or no response to it could end."""


@dataclass(frozen=True, slots=True)
class TokenizedProblem:
    """One row of the dataset, with its rendered and tokenized prompt."""

    problem: Any
    encoded: EncodedPrompt

    def prompt(self, id_: str, sampling: Sampling) -> Prompt:
        """Return the prompt that asks for solutions of this problem."""
        return Prompt(id_, self.encoded.text, self.encoded.token_ids, self.problem, sampling)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Both splits of a task's dataset, tokenized."""

    train: Sequence[TokenizedProblem]
    eval: Sequence[TokenizedProblem]


def load_dataset(config: RunConfig, model: Path) -> Dataset:
    """Return all problems of the configured task, tokenized for the model in the directory `model`.

    Raises:
        UnusablePromptError: if a prompt is too long, the model's chat template fails or leaves out a part of a prompt,
            or the tokenizer has no end-of-sequence token. Preflight reports all this earlier, unless the model had to
            be downloaded first.
    """
    task = build_task(config.task.name, config.task.options)
    max_prompt_tokens = config.model.max_context_tokens - config.rollout.max_response_tokens

    def encode(rows: Sequence[Any]) -> list[TokenizedProblem]:
        encoded = encoded_problems(encoder, task, rows)
        problems = [TokenizedProblem(row, prompt) for row, prompt in zip(rows, encoded, strict=True)]
        longest = max(len(problem.encoded.token_ids) for problem in problems)
        if longest > max_prompt_tokens:
            raise UnusablePromptError(
                f"the longest prompt has {longest} tokens, and with rollout.max_response_tokens = "
                f"{config.rollout.max_response_tokens} it does not fit into model.max_context_tokens = "
                f"{config.model.max_context_tokens}; raise that to at least "
                f"{longest + config.rollout.max_response_tokens}"
            )
        return problems

    try:
        encoder = PromptEncoder(model)
        return Dataset(encode(task.problems("train")), encode(task.problems("eval")))
    except PromptError as error:
        raise UnusablePromptError(str(error)) from error


def evaluation_prompts(config: RunConfig, dataset: Dataset, split: Split = "eval") -> list[Prompt]:
    """Return the prompts of an evaluation. Every evaluation uses the same prompts with the same seeds.

    From the eval split, these are the first problems. From the training split, they are problems at equal distances:
    neighbors may be the same problem in other words (`orders_per_puzzle`) and would not be independent.
    """
    problems = dataset.eval if split == "eval" else dataset.train
    count = min(config.evaluation.prompts, len(problems))
    if split == "eval":
        ids = {row: f"eval/{row}" for row in range(count)}
    else:
        ids = {row: f"eval/train/{row}" for row in (index * len(problems) // count for index in range(count))}
    return [
        problems[row].prompt(id_, _sampling(config, id_, config.evaluation.responses_per_prompt, seeded=True))
        for row, id_ in ids.items()
    ]


def training_sampling(config: RunConfig, prompt_id: str, draw: int = 0) -> Sampling:
    """Return the sampling parameters of a training prompt.

    Args:
        draw: Another number draws other responses with the same `config.seed`.

    In an on-policy run each response has its own seed. In an asynchronous run the weights may change during sampling,
    so a seed would not determine the response, and each seeded response costs a random generator.
    """
    seeded = config.rollout.max_staleness == 0
    seed_id = f"{prompt_id}/{draw}" if draw else prompt_id
    return _sampling(config, seed_id, config.rollout.responses_per_prompt, seeded)


def sampling_seed(run_seed: int, prompt_id: str) -> int:
    """Return the seed of a prompt's responses. It does not depend on the worker that samples them.

    Response i is sampled with seed + i, so seeds are multiples of 4096.
    """
    digest = hashlib.sha256(f"{run_seed}/{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:6], "big") << 12


def _sampling(config: RunConfig, prompt_id: str, responses: int, seeded: bool) -> Sampling:
    seed = sampling_seed(config.seed, prompt_id) if seeded else None
    return Sampling(responses, config.rollout.temperature, config.rollout.max_response_tokens, seed)


class PromptSource:
    """An endless sequence of training prompts: epochs over the problems, each shuffled by the run's seed.

    `position` is the number of prompts handed out so far. Together with the ids of the prompts in flight it is all that
    a checkpoint must remember:

        source.resume(checkpoint)  # hands out the prompts in flight again, in their order, before new ones

    This order does not depend on what the responses are. That of `InformativeSource` does.
    """

    def __init__(
        self,
        problems: Sequence[TokenizedProblem],
        seed: int,
        sampling: Callable[[str], Sampling],
        position: int = 0,
    ) -> None:
        if not problems:
            raise ValueError("there are no training prompts: the task's training split is empty")
        self._problems = problems
        self._seed = seed
        self._sampling = sampling
        self.position = position
        self._again: deque[str] = deque()

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue at the position of an earlier source of the same prompts, whose prompts in flight were not trained
        on."""
        self.position = checkpoint.progress.position
        self._again = deque(checkpoint.progress.in_flight)

    @property
    def selection(self) -> SelectionState | None:
        """The state that a checkpoint stores besides the position; None if there is nothing else."""
        return None

    def observe(self, batch: Batch) -> dict[str, float]:
        """Take note of a batch that was trained on, before the prompts of the next one are drawn. Return metrics."""
        return {}

    def prior(self, prompt_id: str) -> tuple[float, float]:
        """Return the parameters (a, b) of the Beta distribution of the prompt's success probability, before it is
        sampled."""
        return PRIOR

    @property
    def coming_again(self) -> tuple[str, ...]:
        """The ids of the earlier source's prompts that have not been handed out again yet."""
        return tuple(self._again)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the prompts, their order and the seed. A position means the same in two runs with equal hashes."""
        digest = hashlib.sha256(str(self._seed).encode())
        for problem in self._problems:
            tokens = np.asarray(problem.encoded.token_ids, dtype=np.int64)
            digest.update(len(tokens).to_bytes(8, "big") + tokens.tobytes())
        return digest.hexdigest()

    @property
    def rows(self) -> int:
        """The number of problems."""
        return len(self._problems)

    @property
    def epoch(self) -> int:
        """The number of complete passes over the problems."""
        return self.position // len(self._problems)

    def next(self) -> Prompt:
        """Return the next prompt. Each problem occurs exactly once per epoch."""
        if self._again:
            return self.by_id(self._again.popleft())
        epoch, index = divmod(self.position, len(self._problems))
        self.position += 1
        return self.by_id(f"train/{epoch}/{_order(self._seed, epoch, len(self._problems))[index]}")

    def by_id(self, prompt_id: str) -> Prompt:
        """Return the prompt that has, or had, this id."""
        return self._problems[row_of(prompt_id)].prompt(prompt_id, self._sampling(prompt_id))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, rows: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(rows)
