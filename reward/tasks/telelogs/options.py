"""The list of causes that a question offers: as published, or the randomized variant. For generated and real data."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass

from reward.tasks.telelogs.causes import LABELS

FEWEST_OPTIONS = 5


@dataclass(frozen=True, slots=True)
class Option:
    """One line of the list."""

    printed: str
    """The label in this question."""
    cause: str
    """The cause behind it: C1 … C8."""


PUBLISHED = tuple(Option(label, label) for label in LABELS)


def randomised_options(right: str, rng: random.Random) -> tuple[Option, ...]:
    """Five to eight causes in any order, `right` (C1 … C8) among them, under other labels: digits, or letters
    with digits.

    No label is one of C1 … C8, so that an answer known by heart is never right by accident (ours).
    """
    wrong = [label for label in LABELS if label != right]
    kept = [right, *rng.sample(wrong, rng.randint(FEWEST_OPTIONS, len(LABELS)) - 1)]
    rng.shuffle(kept)
    printed = rng.choice((_digits, _letters_and_digits))(len(kept), rng)
    return tuple(Option(label, cause) for label, cause in zip(printed, kept, strict=True))


def printed_label(options: tuple[Option, ...], cause: str) -> str:
    """Under which label `cause` is offered.

    Raises:
        ValueError: it is not offered.
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
