"""What a user's verifier may give back, and the verdict that it means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, ValidationError

from cluster.core.types import Outcome, Verdict

Number = Annotated[StrictFloat | StrictInt, Field(allow_inf_nan=False)]


class FullVerdict(BaseModel):
    """A verdict in full, as a dictionary or as JSON: the reward, the outcome, or both."""

    model_config = ConfigDict(extra="forbid")

    reward: Number | StrictBool | None = None
    """By default 1 for the outcome "correct", else 0."""
    outcome: Outcome | None = None
    """By default what the reward says. `error` takes the response out of the statistics."""
    answer: str | None = None
    """What the response answered, to be read and to be voted on."""
    reason: str = ""


def verdict_of(returned: Any, correct_from: float) -> Verdict:
    """The verdict that a returned value means. A number is a reward; the response is right if it is at least
    `correct_from`.

    Raises:
        ValueError: nothing is meant by it. The message says what was returned.
    """
    match returned:
        case Verdict():
            return returned
        case Mapping():
            return _from_full_verdict(dict(returned), correct_from)
    reward = number_of(returned)
    return Verdict(_outcome(reward, correct_from), reward, None, "")


def number_of(returned: Any) -> float:
    """The finite number that was returned, as a Python, numpy or torch scalar.

    Raises:
        ValueError: it is none.
    """
    value = (
        returned.item() if type(returned).__module__ != "builtins" and hasattr(returned, "item") else returned
    )
    if not isinstance(value, bool | int | float):
        raise ValueError(f"the verifier returned {_shown(returned)}, which is no reward")
    if not math.isfinite(value):
        raise ValueError(f"the verifier returned the reward {value}")
    return float(value)


def _from_full_verdict(returned: Mapping[str, Any], correct_from: float) -> Verdict:
    try:
        assessment = FullVerdict.model_validate(returned)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        where = ".".join(map(str, detail["loc"][:1]))
        raise ValueError(
            f"the verifier returned {_shown(returned)}: {where}: {detail['msg'][0].lower()}{detail['msg'][1:]}"
        ) from None
    if assessment.reward is None and assessment.outcome is None:
        raise ValueError(f"the verifier returned {_shown(returned)}, without a reward or an outcome")
    reward = float(assessment.outcome == "correct" if assessment.reward is None else assessment.reward)
    outcome = assessment.outcome or _outcome(reward, correct_from)
    return Verdict(outcome, reward, assessment.answer, assessment.reason)


def _outcome(reward: float, correct_from: float) -> Outcome:
    return "correct" if reward >= correct_from else "incorrect"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
