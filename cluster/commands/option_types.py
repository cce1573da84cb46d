"""The types of options: numbers with the bounds of the schema, and addresses. A refused one is one line.

Every number and every address of the command line has one of these types, so none reaches a command unread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from pydantic import ConfigDict, TypeAdapter, ValidationError

from cluster.configuration.messages import expected
from cluster.core.addresses import AddressError, parse_address

_SHOWN_CHARACTERS = 40


def number(kind: Any) -> Callable[[str], Any]:
    """Return the parser of an option whose value is a number of the type `kind` of `cluster.core.schema`."""

    def parse(value: object) -> Any:  # typer also passes the default
        try:
            return read_number(kind, str(value))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return parse


def read_number(kind: Any, text: str) -> Any:
    """Return the number in `text`, which is of the type `kind` of `cluster.core.schema`.

    Raises:
        ValueError: if it is not a number, or out of bounds. The message is one line.
    """
    try:
        return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False)).validate_strings(text)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        shown = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
        what = expected(detail["type"], detail["msg"], detail.get("ctx", {}))
        raise ValueError(f"expected {what}, got {shown!r}") from None


def address(text: str) -> str:
    """Return the address of an option if it is one; parse an option's value with this function."""
    try:
        parse_address(text)
    except AddressError as error:
        raise typer.BadParameter(str(error)) from None
    return text
