"""The client of an HTTP service that scores responses. It limits concurrency, time and retries.

request   POST {"problem": …, "response": "…"}
reply     200 {"reward": 0.5, "outcome": "correct", "answer": "7", "reason": "…"}; the reward or the outcome is required
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from cluster.core.addresses import shown_text, shown_url
from cluster.core.types import IndexedVerdicts, Verdict
from reward.verdicts import verdict_of

FIRST_PAUSE_S = 0.5
"""The pause before the first retry. It doubles for each further one."""
MAX_REPLY_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a service, and the limits of the requests to it."""

    url: str
    timeout_s: float
    """The time limit of one attempt, from its beginning to the last byte of the reply."""
    retries: int
    concurrency: int
    correct_from: float
    header: tuple[str, str] | None = field(default=None, repr=False)
    """The name and the value of the header with the token."""

    @property
    def shown(self) -> str:
        """The address for reasons: without a password or a query."""
        return shown_url(self.url)


class _Failure(Exception):
    """The service gave no verdict. With `retry` a later attempt may succeed."""

    def __init__(self, verdict: Verdict, retry: bool) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict
        self.retry = retry


class HttpScorer:
    """Scores with the service at `endpoint`. Any failure of the service becomes a verdict; none is raised."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._slots = asyncio.Semaphore(endpoint.concurrency)
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        """Open the client. No request is made yet.

        Raises:
            RuntimeError: if the proxies of the environment cannot be used.
        """
        header = self._endpoint.header
        try:
            self._client = httpx.AsyncClient(
                timeout=None,  # _attempt limits the whole attempt
                limits=httpx.Limits(max_connections=self._endpoint.concurrency),
                headers=[header] if header else None,
            )
        except Exception as error:  # ImportError, ValueError, InvalidURL: whatever httpx makes of a proxy
            raise RuntimeError(
                "a proxy of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) cannot be used "
                f"({shown_text(str(error).splitlines()[0] if str(error) else type(error).__name__)}): correct it, or "
                f"add the host of {self._endpoint.shown} to NO_PROXY"
            ) from None

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def score(self, requests: Sequence[tuple[Any, str]]) -> AsyncIterator[IndexedVerdicts]:
        """Yield one verdict per (problem, response) pair, as they become available."""
        indices = {
            asyncio.create_task(self._score(problem, text)): index
            for index, (problem, text) in enumerate(requests)
        }
        pending = set(indices)
        try:
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                yield [(indices[task], task.result()) for task in done]
        finally:
            for task in pending:
                task.cancel()

    async def _score(self, problem: Any, response: str) -> Verdict:
        for attempt in range(self._endpoint.retries + 1):
            try:
                async with self._slots:
                    return await self._attempt(problem, response)
            except _Failure as failure:
                if not failure.retry or attempt == self._endpoint.retries:
                    return failure.verdict
            await asyncio.sleep(FIRST_PAUSE_S * 2**attempt)
        raise AssertionError("the last attempt returns")

    async def _attempt(self, problem: Any, response: str) -> Verdict:
        """Return the verdict of one attempt, or raise _Failure."""
        endpoint = self._endpoint
        try:
            async with asyncio.timeout(endpoint.timeout_s):
                status, body = await self._post({"problem": problem, "response": response})
        except TimeoutError:
            reason = (
                f"{endpoint.shown} did not answer within {endpoint.timeout_s:g} s (task.options.timeout_s)"
            )
            raise _Failure(Verdict("timeout", 0.0, None, reason), retry=True) from None
        except httpx.HTTPError as error:
            raise self._failure(f"cannot be reached ({type(error).__name__}: {error})", retry=True) from None
        except (TypeError, ValueError) as error:
            raise self._failure(f"was not called: the problem is not JSON ({error})", retry=False) from None
        if status != httpx.codes.OK:
            retry = status == httpx.codes.TOO_MANY_REQUESTS or status >= 500
            raise self._failure(f"answered with status {status}: {_shown(body)}", retry)
        try:
            reply = json.loads(body)
        except ValueError:
            raise self._failure(f"answered with text that is not JSON: {_shown(body)}", retry=False) from None
        if not isinstance(reply, dict):
            raise self._failure(f"answered with JSON that is not an object: {_shown(body)}", retry=False)
        try:
            return verdict_of(reply, endpoint.correct_from)
        except ValueError as error:
            raise self._failure(f"answered with an invalid verdict: {error}", retry=False) from None

    async def _post(self, request: dict[str, Any]) -> tuple[int, bytes]:
        assert self._client is not None, "call start first"
        body = json.dumps(request)  # with \\u escapes, which can express halves of surrogate pairs
        async with self._client.stream(
            "POST", self._endpoint.url, content=body, headers={"Content-Type": "application/json"}
        ) as reply:
            received = bytearray()
            async for part in reply.aiter_bytes():
                received += part
                if len(received) > MAX_REPLY_BYTES:
                    break
            return reply.status_code, bytes(received)

    def _failure(self, what: str, retry: bool) -> _Failure:
        return _Failure(Verdict("error", 0.0, None, f"{self._endpoint.shown} {shown_text(what)}"), retry)


def _shown(body: bytes) -> str:
    text = " ".join(body.decode("utf-8", "replace").split())
    return repr(text if len(text) <= 100 else f"{text[:100]}…")
