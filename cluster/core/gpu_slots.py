"""Assign actors to GPUs as Ray does. Pure."""

from __future__ import annotations

_DIGITS = 4
"""The precision of Ray's amounts, in decimal places."""


def take_gpus(amount: float, free: list[float]) -> bool:
    """Subtract `amount` GPUs from `free`, the part of each GPU that is left. Return False if it does not fit.

    A fraction comes from one GPU, the one with the least left that has enough. A whole number takes unused GPUs.
    """
    if amount == 0:
        return True
    if amount < 1:
        fitting = [index for index, left in enumerate(free) if round(left - amount, _DIGITS) >= 0]
        if not fitting:
            return False
        chosen = min(fitting, key=lambda index: free[index])
        free[chosen] = round(free[chosen] - amount, _DIGITS)
        return True
    unused = [index for index, left in enumerate(free) if left == 1]
    if amount != int(amount) or amount > len(unused):
        return False
    for index in unused[: int(amount)]:
        free[index] = 0.0
    return True
