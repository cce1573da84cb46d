"""The newest correct response to each training problem, as it was sampled. Pure, with bounded memory.

A row *fails* if it was solved once and no response to its last group was correct that had to find its own beginning.
Responses that were given a prefix do not count as long as there are others: a prompt that is solved with a prefix alone
still needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cluster.core.types import Response, ScoredGroup, row_of

MAX_TOKENS = 2**23
"""The number of tokens that are kept, of prompts and responses together. The oldest successes beyond it
are forgotten."""


@dataclass(frozen=True, slots=True)
class Success:
    """A correct response, with the prompt that it was sampled for."""

    prompt_token_ids: tuple[int, ...]
    response: Response
    reward: float
    fails_now: bool
    """True if the problem fails since."""

    @property
    def tokens(self) -> int:
        """The number of tokens of the prompt and of the whole response."""
        return len(self.prompt_token_ids) + self.response.whole_length

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens of the whole response."""
        return (*self.response.prefix, *self.response.token_ids.tolist())


class SuccessStore:
    """The successes by row of the training data, oldest first."""

    def __init__(self, max_tokens: int = MAX_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._by_row: dict[int, Success] = {}
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._by_row)

    def __iter__(self) -> Iterator[tuple[int, Success]]:
        return iter(self._by_row.items())

    def get(self, row: int) -> Success | None:
        """Return the newest success of a row, if it is known."""
        return self._by_row.get(row)

    def observe(self, groups: Iterable[ScoredGroup]) -> None:
        """Take in the groups of one step. Their order does not matter, and groups without a verdict say nothing."""
        for group in sorted(groups, key=_age):
            if group.valid:
                self._observe(row_of(group.prompt.id), group)

    def put(self, row: int, success: Success) -> None:
        """Keep `success` as the newest one of all."""
        self._forget(row)
        self._by_row[row] = success
        self._tokens += success.tokens
        while self._tokens > self._max_tokens:
            self._forget(next(iter(self._by_row)))

    def _observe(self, row: int, group: ScoredGroup) -> None:
        pairs = [pair for pair in zip(group.responses, group.verdicts, strict=True) if pair[1].is_valid]
        unaided = [pair for pair in pairs if not pair[0].prefix] or pairs
        fails_now = not any(verdict.outcome == "correct" for _, verdict in unaided)
        correct = next((pair for pair in pairs if pair[1].outcome == "correct"), None)
        if correct is not None:
            response, verdict = correct
            self.put(row, Success(group.prompt.token_ids, response, verdict.reward, fails_now))
        elif (known := self._by_row.get(row)) is not None:
            # In its place: it is not newer than before.
            self._by_row[row] = Success(known.prompt_token_ids, known.response, known.reward, fails_now)

    def _forget(self, row: int) -> None:
        if (known := self._by_row.pop(row, None)) is not None:
            self._tokens -= known.tokens


def _age(group: ScoredGroup) -> tuple[int, ...]:
    """Return the numbers in the prompt's id: the epoch, and the row."""
    return tuple(map(int, group.prompt.id.split("/")[1:]))
