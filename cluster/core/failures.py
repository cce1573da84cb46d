"""Short messages for errors that stop a run: the error and where in our code it came from. Pure.

The text of an error from a Ray actor fills a page: the actor, every frame of Ray, asyncio and torch, and at its end the
error itself.
"""

from __future__ import annotations

import re

FOREIGN = re.compile(r'File "[^"]*(site-packages|dist-packages|lib/python3|importlib|<frozen)')
FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')
ACTOR = re.compile(r"ray::(?P<actor>[\w.<>:]+)")
SHOWN_FRAMES = 3
SHOWN_LINES = 12


def trimmed(error: BaseException) -> str:
    """Return the message of an error. If an actor raised it, this is the error's own message, the actor, and the last
    frames outside of libraries."""
    text = str(error).strip() or type(error).__name__
    lines = [line.rstrip() for line in text.splitlines()]
    at = [number for number, line in enumerate(lines) if FRAME.match(line)]
    if not at:
        return _first_lines(lines)
    frames = [
        f"  at {frame['file']}:{frame['line']}, in {frame['function']}"
        for number in at
        if not FOREIGN.search(lines[number]) and (frame := FRAME.match(lines[number]))
    ]
    actor = next((found["actor"] for line in lines if (found := ACTOR.search(line))), None)
    message = _after_last_frame(lines, at[-1])
    head = f"{_first_lines(message)}" + (f" (in {actor})" if actor else "")
    return "\n".join([head, *frames[-SHOWN_FRAMES:]])


def _after_last_frame(lines: list[str], frame: int) -> list[str]:
    """Return the lines of the error itself: those after the last frame, its source line and its markers (^^^^)."""
    rest = lines[frame + 1 :]
    while rest and (rest[0].startswith("    ") or not rest[0].strip()):
        rest = rest[1:]
    return rest or lines[-1:]


def _first_lines(lines: list[str]) -> str:
    left_out = len(lines) - SHOWN_LINES
    return "\n".join([*lines[:SHOWN_LINES], *([f"[{left_out} more lines]"] if left_out > 0 else [])])
