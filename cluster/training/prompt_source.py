"""Which prompt comes next: epochs over the training problems, each in an order of its own that the seed decides.
Pure."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from cluster.core.types import Prompt, Sampling
from rollout.engine.tokenizer import EncodedPrompt


@dataclass(frozen=True, slots=True)
class TokenizedProblem:
    """One data-set row, rendered and tokenized."""

    problem: Any
    encoded: EncodedPrompt


def sampling_seed(run_seed: int, prompt_id: str) -> int:
    """The seed of a prompt's responses: the same whichever worker samples them. Far enough apart for `seed + i`."""
    digest = hashlib.sha256(f"{run_seed}/{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:6], "big") << 12


def ask(id_: str, question: TokenizedProblem, sampling: Sampling) -> Prompt:
    return Prompt(id_, question.encoded.text, question.encoded.token_ids, question.problem, sampling)


class PromptSource:
    """An endless sequence of training prompts. Each row comes exactly once per epoch.

    `position` is the number of prompts handed out; together with the ids still in flight it is all that a
    checkpoint needs:

        source.resume(position, in_flight)  # those in flight come again, in their order, before any new one
    """

    def __init__(
        self,
        questions: Sequence[TokenizedProblem],
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
        self._again: deque[str] = deque()

    def resume(self, position: int, in_flight: Iterable[str]) -> None:
        """Go on where another source of the same prompts was, whose prompts `in_flight` came to nothing."""
        self.position = position
        self._again = deque(in_flight)

    @property
    def coming_again(self) -> tuple[str, ...]:
        """Ids of the prompts that are still to be handed out again."""
        return tuple(self._again)

    @cached_property
    def fingerprint(self) -> str:
        """Of all prompts, their order and seeds: a position means the same in two runs that share it."""
        digest = hashlib.sha256(str(self._seed).encode())
        for question in self._questions:
            tokens = np.asarray(question.encoded.token_ids, dtype=np.int64)
            digest.update(len(tokens).to_bytes(8, "big") + tokens.tobytes())
        return digest.hexdigest()

    @property
    def epoch(self) -> int:
        return self.position // len(self._questions)

    def next(self) -> Prompt:
        if self._again:
            return self.by_id(self._again.popleft())
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
