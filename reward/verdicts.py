"""What a user's verifier may give back, and the verdict that it means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, ValidationError

from cluster.core.types import Outcome, Verdict

Number = Annotated[StrictFloat | StrictInt, Field(allow_inf_nan=False)]


class Judgement(BaseModel):
    """A verdict in full, as a dictionary or as JSON: the reward, the outcome, or both."""

    model_config = ConfigDict(extra="forbid")

    reward: Number | StrictBool | None = None
    """By default 1 for the outcome "right", else 0."""
    outcome: Outcome | None = None
    """By default what the reward says. `error` takes the response out of the statistics."""
    answer: str | None = None
    """What the response answered, to be read and to be voted on."""
    reason: str = ""


def verdict_of(returned: Any, right_from: float) -> Verdict:
    """The verdict that a returned value means. A number is a reward; the response is right if it is at least
    `right_from`.

    Raises:
        ValueError: nothing is meant by it. The message says what was returned.
    """
    match returned:
        case Verdict():
            return returned
        case Mapping():
            return _from_judgement(dict(returned), right_from)
    reward = number_of(returned)
    return Verdict(_outcome(reward, right_from), reward, None, "")


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


def _from_judgement(returned: Mapping[str, Any], right_from: float) -> Verdict:
    try:
        judgement = Judgement.model_validate(returned)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        where = ".".join(map(str, detail["loc"][:1]))
        raise ValueError(
            f"the verifier returned {_shown(returned)}: {where}: {detail['msg'][0].lower()}{detail['msg'][1:]}"
        ) from None
    if judgement.reward is None and judgement.outcome is None:
        raise ValueError(f"the verifier returned {_shown(returned)}, without a reward or an outcome")
    reward = float(judgement.outcome == "right" if judgement.reward is None else judgement.reward)
    outcome = judgement.outcome or _outcome(reward, right_from)
    return Verdict(outcome, reward, judgement.answer, judgement.reason)


def _outcome(reward: float, right_from: float) -> Outcome:
    return "right" if reward >= right_from else "wrong"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
