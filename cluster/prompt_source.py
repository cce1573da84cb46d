"""Which prompt comes next: epochs over the training problems, each in an order of its own that the seed decides.
Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from cluster.contracts import Prompt, Sampling
from rollout.prompt_encoder import EncodedPrompt


@dataclass(frozen=True, slots=True)
class Question:
    """One data-set row, rendered and tokenised."""

    problem: Any
    encoded: EncodedPrompt


def sampling_seed(run_seed: int, prompt_id: str) -> int:
    """The seed of a prompt's responses: the same whichever worker samples them. Far enough apart for `seed + i`."""
    digest = hashlib.sha256(f"{run_seed}/{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:6], "big") << 12


def ask(id_: str, question: Question, sampling: Sampling) -> Prompt:
    return Prompt(id_, question.encoded.text, question.encoded.token_ids, question.problem, sampling)


class PromptSource:
    """An endless sequence of training prompts. Each row comes exactly once per epoch.

    `position` is the number of prompts handed out; together with the ids still in flight it is all that a
    checkpoint needs.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        seed: int,
        sampling: Callable[[str], Sampling],
        position: int = 0,
    ) -> None:
        if not questions:
            raise ValueError("there are no training prompts")
        self._questions = questions
        self._seed = seed
        self._sampling = sampling
        self.position = position

    @property
    def epoch(self) -> int:
        return self.position // len(self._questions)

    def next(self) -> Prompt:
        epoch, place = divmod(self.position, len(self._questions))
        self.position += 1
        return self.by_id(f"train/{epoch}/{_order(self._seed, epoch, len(self._questions))[place]}")

    def by_id(self, prompt_id: str) -> Prompt:
        """A prompt that was handed out before, the same again."""
        row = int(prompt_id.rpartition("/")[2])
        return ask(prompt_id, self._questions[row], self._sampling(prompt_id))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, rows: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(rows)
