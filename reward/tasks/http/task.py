"""A user's HTTP service as verifier. docs/rewards.md describes the requests and the replies."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from pydantic import ConfigDict, field_validator

from cluster.core.addresses import url_problem
from cluster.core.schema import Count, CountOrZero, Number, Seconds
from cluster.core.secrets import is_secret_name
from reward.dataset.rows import SUM, DatasetOptions, DatasetProblems
from reward.dataset.values import Row
from reward.task import Scorer
from reward.tasks.http.client import Endpoint, HttpScorer

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,99}")
_HEADER = re.compile(r"([A-Za-z][A-Za-z0-9-]*):\s+(\S.*)")


class HttpOptions(DatasetOptions):
    """The user's prompts and service."""

    model_config = ConfigDict(hide_input_in_errors=True)

    url: str | None = None
    """The address of the service, without any secret. Each response is one POST of {"problem": a row of the data,
    "response": text}."""
    token_variable: str | None = None
    """The name of an environment variable of the command, such as SCORER_TOKEN. Its value is sent as `Authorization:
    Bearer …`, or as the header that it is, such as `X-Api-Key: …`."""
    timeout_s: Seconds = 30.0
    """The time limit of one attempt in seconds."""
    retries: CountOrZero = 3
    """The number of retries after a missing reply or a status of 429 or 5xx, with pauses of 0.5, 1, 2, … seconds."""
    concurrency: Count = 16
    """The number of requests that one reward actor makes at the same time."""
    correct_from: Number = 1.0
    """The smallest reward of a correct response, unless the reply names an outcome."""

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str | None) -> str | None:
        if url is not None and (problem := url_problem(url)):
            fix = (
                ""
                if "write it" in problem
                else "; set task.options.token_variable to a variable that has the secret"
            )
            raise ValueError(f"{problem}{fix}")
        return url

    @field_validator("token_variable")
    @classmethod
    def _is_kept_from_verifiers(cls, name: str | None) -> str | None:
        if name is not None and not (_VARIABLE.fullmatch(name) and is_secret_name(name)):
            raise ValueError(
                "expected the name of a variable that ends in _TOKEN or _KEY, and not the token itself: variables of "
                "such names are kept from the processes of verifiers"
            )
        return name


class HttpTask(DatasetProblems):
    """A task with the user's prompts, scored by the user's HTTP service."""

    Options = HttpOptions
    sample = SUM
    verifier_option = "url"

    def __init__(self, options: HttpOptions) -> None:
        super().__init__(options)
        self._options = options

    def check_row(self, row: Row) -> None:
        """Refuse a row that no request can contain.

        Raises:
            ValueError: if a field is binary, which JSON cannot express.
        """
        for name, value in row.items():
            try:
                json.dumps(value)
            except TypeError:
                raise ValueError(f"the field {name!r} is binary, and cannot be sent to a service") from None

    @property
    def variables(self) -> tuple[str, ...]:
        """The variables of the command's environment that the client needs."""
        return (self._options.token_variable,) if self._options.token_variable else ()

    def scorer(self, check: bool, environment: Mapping[str, str]) -> Scorer:
        """Return the client of the service.

        Raises:
            ValueError: if there is no URL, or the variable with the token is not set.
        """
        options = self._options
        if options.url is None:
            raise ValueError("name the service: set task.options.url")
        return HttpScorer(
            Endpoint(
                options.url,
                options.timeout_s,
                options.retries,
                options.concurrency,
                options.correct_from,
                header_of(options.token_variable, environment),
            )
        )


def header_of(variable: str | None, environment: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the header with the token that `variable` has; None without a variable.

    Raises:
        ValueError: if the variable is not set, or its value cannot be sent. The value is not quoted.
    """
    if variable is None:
        return None
    value = environment.get(variable, "").strip()
    where = f"task.options.token_variable: the variable {variable}"
    if not value:
        raise ValueError(f"{where} is not set in the environment of this command; export it first")
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"{where} has a value that no header can contain (line breaks, or beyond ASCII)")
    header = _HEADER.fullmatch(value)
    return (header[1], header[2]) if header else ("Authorization", f"Bearer {value}")


TASK = HttpTask
