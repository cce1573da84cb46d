"""The verdicts for values that a user's verifier or service returns, and for exceptions that it raises.

Everything that is foreign becomes a verdict here: `checked_verdict` builds each one that comes from outside. After it
every text is short and valid UTF-8, every reward is a finite float, and every outcome is known.
"""

from __future__ import annotations

import errno
import math
import os
import traceback
from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, ValidationError

from cluster.core.renamed import OUTCOMES
from cluster.core.text import valid_text
from cluster.core.types import Outcome, Verdict

MAX_ANSWER_CHARACTERS = 4000
MAX_REASON_CHARACTERS = 1000
Number = Annotated[StrictFloat | StrictInt, Field(allow_inf_nan=False)]

_OUTCOMES: Mapping[Any, Outcome] = {outcome: outcome for outcome in get_args(Outcome)}

_OUR_FILES = os.path.dirname(__file__) + os.sep


class FullVerdict(BaseModel):
    """A verdict as a dictionary or a JSON object: the reward, the outcome, or both."""

    model_config = ConfigDict(extra="forbid")

    reward: Number | StrictBool | None = None
    """By default 1 for the outcome "correct", else 0."""
    outcome: Outcome | None = None
    """By default decided by the reward. "error" excludes the response from the statistics; "limit" does not."""
    answer: str | None = None
    """The answer found in the response, for transcripts and majority votes."""
    reason: str = ""


def checked_verdict(outcome: object, reward: object, answer: object, reason: object) -> Verdict:
    """Return the verdict with these parts. Long texts are cut, and characters that cannot be shown are escaped.

    Raises:
        ValueError: if the outcome is unknown, or the reward is not a finite number.
        Exception: whatever a part raises that is neither text nor a number.
    """
    known = _OUTCOMES.get(outcome) if isinstance(outcome, str) else None
    if known is None:
        refuse_renamed(outcome, "the verifier gave a verdict of an earlier version")
        raise ValueError(f"the verifier gave the outcome {_shown(outcome)}")
    number = reward if type(reward) is float and math.isfinite(reward) else number_of(reward)
    found = None if answer is None else valid_text(_text(answer), MAX_ANSWER_CHARACTERS)
    return Verdict(known, number, found, valid_text(_text(reason), MAX_REASON_CHARACTERS))


def verdict_of(returned: Any, correct_from: float) -> Verdict:
    """Return the verdict that a returned value means, checked.

    Args:
        returned: a number or bool (the reward), a dictionary with the fields of `FullVerdict`, or a `Verdict`.
        correct_from: the smallest reward of a correct response, where the value names no outcome.

    Raises:
        ValueError: if the value means no verdict. The message shows the value.
    """
    match returned:
        case Verdict():
            return checked_verdict(returned.outcome, returned.reward, returned.answer, returned.reason)
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
    try:
        number = float(value)
    except OverflowError:
        raise ValueError("the verifier returned a reward beyond the largest float") from None
    if not math.isfinite(number):
        raise ValueError(f"the verifier returned the reward {number}")
    return number


def refuse_renamed(outcome: object, prefix: str) -> None:
    """Raise ValueError, with the present name in its message, if `outcome` has the name of an earlier version."""
    if isinstance(outcome, str) and outcome in OUTCOMES:
        raise ValueError(f"{prefix}: outcome: {outcome!r} is now {OUTCOMES[outcome]!r}")


def error_verdict(error: BaseException) -> Verdict:
    """Return the verdict on a response whose verifier raised `error`. A limit of memory, or of a file's size, is a
    limit."""
    is_limit = isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EFBIG)
    )
    return failed_verdict(describe_error(error), "limit" if is_limit else "error")


def failed_verdict(reason: str, outcome: Outcome = "error") -> Verdict:
    """Return the verdict on a response that could not be scored."""
    return Verdict(outcome, 0.0, None, valid_text(reason, MAX_REASON_CHARACTERS))


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
    except OverflowError:
        raise ValueError(f"{prefix}: reward: a number beyond the largest float") from None
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        field = ".".join(map(str, detail["loc"][:1]))
        raise ValueError(f"{prefix}: {field}: {detail['msg'][0].lower()}{detail['msg'][1:]}") from None
    if full.reward is None and full.outcome is None:
        raise ValueError(f"{prefix}, without a reward or an outcome")
    reward = number_of(full.outcome == "correct" if full.reward is None else full.reward)
    return checked_verdict(full.outcome or _outcome(reward, correct_from), reward, full.answer, full.reason)


def _outcome(reward: float, correct_from: float) -> Outcome:
    return "correct" if reward >= correct_from else "incorrect"


def _text(value: object) -> str:
    return value if isinstance(value, str) else str(value)


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception as error:  # of the value's own class; or it is nested too deeply, or has too many digits
        return f"a value of type {type(value).__name__}, which cannot be shown ({type(error).__name__})"
    return text if len(text) <= 100 else f"{text[:100]}…"
