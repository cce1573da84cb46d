"""Errors that one room raises and another one handles."""

from __future__ import annotations


class PlacementError(RuntimeError):
    """The cluster did not provide the requested resources in time."""
