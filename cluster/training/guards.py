"""Stops a run whose verifier fails too often. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cluster.core.types import ScoredGroup


class VerifierFailureError(RuntimeError):
    """The verifier failed on so many responses that what is left does not tell how good the model is."""


def refuse_failed_verdicts(groups: Sequence[ScoredGroup], max_error_fraction: float, where: str) -> None:
    """Let pass what the verifier judged, but for at most `max_error_fraction` of the responses.

    Raises:
        VerifierFailureError: the verifier failed, or took too long, on more. It names the commonest reason.
    """
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    failed = [verdict for verdict in verdicts if verdict.outcome in ("error", "timeout")]
    if len(failed) <= max_error_fraction * len(verdicts):
        return
    ((outcome, reason), count), *others = Counter(
        (verdict.outcome, verdict.reason) for verdict in failed
    ).most_common()
    raise VerifierFailureError(
        f"{where}, the verifier failed on {len(failed)} of {len(verdicts)} responses (reward.max_error_fraction: "
        f"{max_error_fraction:g}); on {count} of them with the {outcome}: {reason}"
        + (f" ({len(others)} other reasons are in the transcripts and logs)" if others else "")
    )
