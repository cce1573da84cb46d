"""The controller's part of a checkpoint: the prompts that are trained, in flight, and next. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from cluster.core.renamed import current_reasons


@dataclass(frozen=True, slots=True)
class Progress:
    """The controller's state between two steps."""

    step: int
    position: int
    """The number of prompts that the source has handed out."""
    in_flight: tuple[str, ...]
    """The ids of prompts that were handed out but not trained on, oldest first. A resumed run hands them out first."""
    trained_prompts: int
    first_pass_at_1: float
    elapsed_s: float
    data: str
    """The fingerprint of the prompts that `position` counts, with their order and seeds."""
    wandb_run_id: str | None
    """The id of the W&B run; None without W&B."""
    dropped_prompts: dict[str, int] = field(default_factory=dict)
    """The number of prompts that dynamic sampling dropped, by reason."""
    sampled_responses: int = 0
    """The number of responses to the trained and the dropped prompts. Earlier versions did not count them."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @staticmethod
    def from_json(text: str) -> Progress:
        """Read what `to_json` wrote. Reasons that an earlier version wrote have their present names.

        Raises:
            ValueError: if the text is not the progress of a run.
        """
        try:
            values = json.loads(text)
            values["in_flight"] = tuple(values["in_flight"])
            values["dropped_prompts"] = current_reasons(values.get("dropped_prompts", {}))
            return Progress(**values)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"it does not describe the progress of a run ({error!r})") from error
