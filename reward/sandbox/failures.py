"""The verdict on a verifier that raised."""

from __future__ import annotations

import os
import traceback

from cluster.core.types import Verdict

_OUR_FILES = os.path.dirname(os.path.dirname(__file__)) + os.sep


def failed(error: BaseException) -> Verdict:
    return Verdict("error", 0.0, None, describe(error))


def describe(error: BaseException) -> str:
    """In one line: what was raised, and the last line of somebody's code that it came through."""
    try:
        message = " ".join(str(error).split())
    except Exception:  # their exception class may be broken too
        message = ""
    if isinstance(error, MemoryError) and not message:
        message = "more than reward.verifier_memory_mib"
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    places = [
        f"{os.path.basename(frame.f_code.co_filename)}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith((_OUR_FILES, "<frozen"))
    ]
    if not places and type(error) is ValueError and message:
        return message  # our own words
    return f"{text} ({places[-1]})" if places else text
