"""Errors that one room raises and another one handles."""

from __future__ import annotations


class PlacementError(RuntimeError):
    """The cluster did not provide the requested resources in time."""


class RefusedError(ValueError):
    """Something that the user named cannot be used: a file, a run directory, an address.

    The message is one line that says what, why and how to fix it. Every command prints it and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
