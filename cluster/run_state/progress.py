"""The controller's part of a checkpoint: which prompts are trained, which are in flight, and which come next. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from cluster.core.renamed import current_reasons


@dataclass(frozen=True, slots=True)
class Progress:
    """The controller's state between two steps."""

    step: int
    position: int
    """Prompts that the source had handed out."""
    in_flight: tuple[str, ...]
    """Prompts handed out but not trained on, oldest first: they are handed out again first."""
    trained_prompts: int
    first_pass_at_1: float
    elapsed_s: float
    data: str
    """Fingerprint of the prompts that `position` counts, and of their order and seeds."""
    wandb_run_id: str | None
    """Of the page that the run is shown on; None without W&B."""
    dropped_prompts: dict[str, int] = field(default_factory=dict)
    """By reason."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @staticmethod
    def from_json(text: str) -> Progress:
        """What `to_json` wrote.

        Raises:
            ValueError: it is no progress.
        """
        try:
            values = json.loads(text)
            values["in_flight"] = tuple(values["in_flight"])
            values["dropped_prompts"] = current_reasons(values.get("dropped_prompts", {}))
            return Progress(**values)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"it does not say how far a run was ({error!r})") from error
