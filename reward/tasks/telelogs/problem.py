"""A question with its answer, wherever it comes from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "eval"]


@dataclass(frozen=True, slots=True)
class Problem:
    question: str
    labels: tuple[str, ...]
    """All that the question offers."""
    answer: str
    """The right one of them."""
    cause: str
    """What is behind it: C1 … C8, whatever the labels are."""


def split_of(content: str, eval_fraction: float) -> Split:
    """Decided by the content alone: the same in every process and for every seed."""
    digest = hashlib.sha256(content.encode()).digest()
    return "eval" if int.from_bytes(digest[:8], "big") < eval_fraction * 2**64 else "train"
