"""The base of every group of settings, and the kinds of numbers that settings are. Torch-free and Ray-free.

Every number is finite and has an upper limit far above sensible values. So a slip of the pen is an error at `check`,
and not an overflow in whatever library gets the number hours later.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from cluster.core.addresses import parse_address, without_url_secrets


class Section(BaseModel):
    """A part of a configuration. It refuses unknown keys and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_serializer(mode="wrap", when_used="json")
    def _without_url_secrets(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Dump the settings for `config.yaml`, W&B and pages: without the passwords in URLs."""
        dumped: dict[str, Any] = without_url_secrets(dump(self))
        return dumped


def _is_address(text: str) -> str:
    parse_address(text)
    return text


MAX_COUNT = 2**31 - 1
"""The largest count: that of a 32-bit integer, which C libraries expect."""
MAX_ACTORS = 4096
"""The largest number of actors or processes of one kind. Each has a log file, a place in the cluster and a task that
watches it."""
MAX_SECONDS = 1e8
"""The longest time: three years."""
MAX_SEED = 2**63 - 1
"""The largest seed that torch accepts."""
MAX_NUMBER = 1e9
"""The largest of all other numbers."""

Count = Annotated[int, Field(ge=1, le=MAX_COUNT, strict=True)]
CountOrZero = Annotated[int, Field(ge=0, le=MAX_COUNT, strict=True)]
ActorCount = Annotated[int, Field(ge=1, le=MAX_ACTORS, strict=True)]
Integer = Annotated[int, Field(ge=-MAX_COUNT, le=MAX_COUNT, strict=True)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED, strict=True)]
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=MAX_NUMBER)]
NotNegative = Annotated[float, Field(ge=0, le=MAX_NUMBER)]
Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
RayAddress = Annotated[str, AfterValidator(_is_address)]
