"""Protocols for services that one room offers and another one uses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from cluster.core.types import IndexedVerdicts, ScoringRequest


class ResponseScorer(Protocol):
    """The reward actors, as the fleet sees them."""

    def score(self, requests: Sequence[ScoringRequest]) -> AsyncIterator[IndexedVerdicts]:
        """Yield one verdict per request, each with the request's index, as they become available.

        Raises:
            TimeoutError: if verdicts are missing at the deadline.
            RewardServiceError: if no response can be scored.
        """
