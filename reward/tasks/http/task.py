"""A service of your own as verifier. What it is asked and must answer: docs/rewards.md."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from reward.dataset.options import DatasetOptions
from reward.dataset.rows import DatasetProblems
from reward.dataset.sample import SUM
from reward.task import Scorer
from reward.tasks.http.client import Endpoint, HttpScorer


class HttpOptions(DatasetOptions):
    """Your prompts, and your service."""

    url: str | None = None
    """It gets a POST with {"problem": a row of the data, "response": text} for each response."""
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Of one attempt."""
    retries: Annotated[int, Field(ge=0)] = 3
    """After no answer, or one with status 429 or 5xx; with pauses of 0.5, 1, 2, … seconds."""
    concurrency: Annotated[int, Field(ge=1)] = 16
    """Requests of one reward actor at a time."""
    correct_from: float = 1.0
    """A response is right when its reward is at least this, unless the reply names an outcome."""

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str | None) -> str | None:
        if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
            raise ValueError("write it as http://host:port/path")
        return url


class HttpTask(DatasetProblems):
    Options = HttpOptions
    sample = SUM
    verifier_option = "url"

    def __init__(self, options: HttpOptions) -> None:
        super().__init__(options)
        self._options = options

    def scorer(self, trial: bool) -> Scorer:
        """Raises ValueError without a URL."""
        options = self._options
        if options.url is None:
            raise ValueError("name the service: set task.options.url")
        return HttpScorer(
            Endpoint(
                options.url, options.timeout_s, options.retries, options.concurrency, options.correct_from
            )
        )


TASK = HttpTask
