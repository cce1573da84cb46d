"""A user's verifier, as README shows one."""

from __future__ import annotations

from typing import Any


def score(problem: dict[str, Any], response: str) -> bool:
    return bool(response.rpartition("Answer:")[2].strip() == problem["answer"])
