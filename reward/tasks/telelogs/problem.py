"""A problem: its prompt, the causes that the prompt offers, and the answer. For generated and published data."""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Iterator
from dataclasses import dataclass

from cluster.core.types import Split
from reward.tasks.telelogs.causes import LABELS

FEWEST_OPTIONS = 5


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of either source."""

    question: str
    """The text of the prompt."""
    labels: tuple[str, ...]
    """The labels that the prompt offers."""
    answer: str
    """The correct label."""
    cause: str
    """The cause that the answer stands for: C1 … C8, independent of the labels."""


def split_of(content: str, eval_fraction: float) -> Split:
    """Return the split of a text. The text alone decides: the split is the same in every process and for every seed."""
    digest = hashlib.sha256(content.encode()).digest()
    return "eval" if int.from_bytes(digest[:8], "big") < eval_fraction * 2**64 else "train"


@dataclass(frozen=True, slots=True)
class Option:
    """One line in the prompt's list of causes."""

    printed: str
    """The label in this prompt."""
    cause: str
    """The cause that it stands for: C1 … C8."""


PUBLISHED = tuple(Option(label, label) for label in LABELS)


def randomized_options(correct: str, rng: random.Random) -> tuple[Option, ...]:
    """Return five to eight causes in random order, including `correct` (C1 … C8), under other labels.

    The labels are digits, or letters with digits. No label is one of C1 … C8, so that a memorized answer is never
    correct by accident (ours).
    """
    incorrect = [label for label in LABELS if label != correct]
    kept = [correct, *rng.sample(incorrect, rng.randint(FEWEST_OPTIONS, len(LABELS)) - 1)]
    rng.shuffle(kept)
    printed = rng.choice((_digits, _letters_and_digits))(len(kept), rng)
    return tuple(Option(label, cause) for label, cause in zip(printed, kept, strict=True))


def printed_label(options: tuple[Option, ...], cause: str) -> str:
    """Return the label under which `cause` is offered.

    Raises:
        ValueError: if it is not offered.
    """
    for option in options:
        if option.cause == cause:
            return option.printed
    raise ValueError(f"{cause} is not among the options")


def _digits(count: int, rng: random.Random) -> Iterator[str]:
    return iter(rng.sample(string.digits[1:], count))


def _letters_and_digits(count: int, rng: random.Random) -> Iterator[str]:
    labels = [letter + digit for letter in string.ascii_uppercase for digit in string.digits[1:]]
    return iter(rng.sample([label for label in labels if label not in LABELS], count))
