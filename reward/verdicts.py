"""The verdicts for values that a user's verifier or service returns, and for exceptions that it raises."""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, ValidationError

from cluster.core.renamed import OUTCOMES
from cluster.core.types import Outcome, Verdict

Number = Annotated[StrictFloat | StrictInt, Field(allow_inf_nan=False)]

_OUR_FILES = os.path.dirname(__file__) + os.sep


class FullVerdict(BaseModel):
    """A verdict as a dictionary or a JSON object: the reward, the outcome, or both."""

    model_config = ConfigDict(extra="forbid")

    reward: Number | StrictBool | None = None
    """By default 1 for the outcome "correct", else 0."""
    outcome: Outcome | None = None
    """By default decided by the reward. "error" excludes the response from the statistics."""
    answer: str | None = None
    """The answer found in the response, for transcripts and majority votes."""
    reason: str = ""


def verdict_of(returned: Any, correct_from: float) -> Verdict:
    """Return the verdict that a returned value means.

    Args:
        returned: a number or bool (the reward), a dictionary with the fields of `FullVerdict`, or a `Verdict`.
        correct_from: the smallest reward of a correct response, where the value names no outcome.

    Raises:
        ValueError: if the value means no verdict. The message shows the value.
    """
    match returned:
        case Verdict():
            refuse_renamed(returned.outcome, f"the verifier returned {_shown(returned)}")
            return returned
        case Mapping():
            return _from_full_verdict(dict(returned), correct_from)
    reward = number_of(returned)
    return Verdict(_outcome(reward, correct_from), reward, None, "")


def number_of(returned: Any) -> float:
    """Return the finite number that was returned as a Python, numpy or torch scalar.

    Raises:
        ValueError: if the value is not a finite number.
    """
    value: Any = (
        returned.item() if type(returned).__module__ != "builtins" and hasattr(returned, "item") else returned
    )
    if not isinstance(value, bool | int | float):
        raise ValueError(f"the verifier returned {_shown(returned)}, which is not a reward")
    if not math.isfinite(value):
        raise ValueError(f"the verifier returned the reward {value}")
    return float(value)


def refuse_renamed(outcome: object, prefix: str) -> None:
    """Raise ValueError, with the present name in its message, if `outcome` has the name of an earlier version."""
    if isinstance(outcome, str) and outcome in OUTCOMES:
        raise ValueError(f"{prefix}: outcome: {outcome!r} is now {OUTCOMES[outcome]!r}")


def error_verdict(error: BaseException) -> Verdict:
    """Return the verdict on a response whose verifier raised `error`."""
    return Verdict("error", 0.0, None, describe_error(error))


def describe_error(error: BaseException) -> str:
    """Return one line: the exception, and the last line outside this package that it passed through."""
    try:
        message = " ".join(str(error).split())
    except Exception:  # the user's exception class may be broken too
        message = ""
    if isinstance(error, MemoryError) and not message:
        message = "more than reward.verifier_memory_mib"
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    lines = [
        f"{os.path.basename(frame.f_code.co_filename)}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith((_OUR_FILES, "<frozen"))
    ]
    if not lines and type(error) is ValueError and message:
        return message  # a message of this package, which needs no prefix
    return f"{text} ({lines[-1]})" if lines else text


def _from_full_verdict(returned: Mapping[str, Any], correct_from: float) -> Verdict:
    prefix = f"the verifier returned {_shown(returned)}"
    refuse_renamed(returned.get("outcome"), prefix)
    try:
        full = FullVerdict.model_validate(returned)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        field = ".".join(map(str, detail["loc"][:1]))
        raise ValueError(f"{prefix}: {field}: {detail['msg'][0].lower()}{detail['msg'][1:]}") from None
    if full.reward is None and full.outcome is None:
        raise ValueError(f"{prefix}, without a reward or an outcome")
    reward = float(full.outcome == "correct" if full.reward is None else full.reward)
    return Verdict(full.outcome or _outcome(reward, correct_from), reward, full.answer, full.reason)


def _outcome(reward: float, correct_from: float) -> Outcome:
    return "correct" if reward >= correct_from else "incorrect"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
