"""A user's HTTP service as verifier. docs/rewards.md describes the requests and the replies."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import field_validator

from cluster.core.schema import Count, CountOrZero, Number, Seconds
from reward.dataset.rows import SUM, DatasetOptions, DatasetProblems
from reward.task import Scorer
from reward.tasks.http.client import Endpoint, HttpScorer


class HttpOptions(DatasetOptions):
    """The user's prompts and service."""

    url: str | None = None
    """The address of the service. Each response is one POST of {"problem": a row of the data, "response": text}."""
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
        if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
            raise ValueError("write it as http://host:port/path")
        return url


class HttpTask(DatasetProblems):
    """A task with the user's prompts, scored by the user's HTTP service."""

    Options = HttpOptions
    sample = SUM
    verifier_option = "url"

    def __init__(self, options: HttpOptions) -> None:
        super().__init__(options)
        self._options = options

    def scorer(self, check: bool) -> Scorer:
        """Return the client of the service.

        Raises:
            ValueError: if there is no URL.
        """
        options = self._options
        if options.url is None:
            raise ValueError("name the service: set task.options.url")
        return HttpScorer(
            Endpoint(
                options.url, options.timeout_s, options.retries, options.concurrency, options.correct_from
            )
        )


TASK = HttpTask
