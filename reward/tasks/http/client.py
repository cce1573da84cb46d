"""The client of an HTTP service that scores responses. It limits concurrency, time and retries.

request   POST {"problem": …, "response": "…"}
reply     200 {"reward": 0.5, "outcome": "correct", "answer": "7", "reason": "…"}; the reward or the outcome is required
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from cluster.core.addresses import shown_text, shown_url
from cluster.core.types import IndexedVerdicts, Verdict
from reward.pace import Pace
from reward.verdicts import failed_verdict, verdict_of

FIRST_PAUSE_S = 0.5
"""The pause before the first retry. It doubles for each further one, up to `LONGEST_PAUSE_S`."""
LONGEST_PAUSE_S = 30.0
MAX_REPLY_BYTES = 2**20
SHORTEST_SECRET = 8
"""The length from which a token is removed from replies. A shorter one may be a part of numbers and names in them."""


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


def pause_s(attempt: int) -> float:
    """Return the pause after attempt 0, 1, …"""
    return min(FIRST_PAUSE_S * 2.0 ** min(attempt, 10), LONGEST_PAUSE_S)


def _quoted_forms(header: tuple[str, str] | None) -> list[str]:
    """Return the texts by which a reply may quote the token: the header's value, its last word (the token itself), and
    both as Python and JSON write them."""
    if header is None:
        return []
    texts = {header[1], *header[1].split()[-1:]}
    forms = {form for text in texts for form in (text, repr(text)[1:-1], json.dumps(text)[1:-1])}
    return sorted((form for form in forms if len(form) >= SHORTEST_SECRET), key=len, reverse=True)


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
        self._secrets = _quoted_forms(endpoint.header)

    @property
    def pace(self) -> Pace:
        endpoint = self._endpoint
        response_s = endpoint.timeout_s + endpoint.retries * (endpoint.timeout_s + LONGEST_PAUSE_S)
        return Pace(endpoint.concurrency, response_s)

    async def start(self) -> None:
        """Open the client. No request is made yet.

        Raises:
            RuntimeError: if the proxies or the certificates of the environment cannot be used.
        """
        header = self._endpoint.header
        try:
            self._client = httpx.AsyncClient(
                timeout=None,  # _attempt limits the whole attempt
                limits=httpx.Limits(max_connections=self._endpoint.concurrency),
                headers=[header] if header else None,
            )
        except Exception as error:  # whatever httpx makes of a proxy or of a file of certificates
            why = shown_text(str(error).splitlines()[0] if str(error) else type(error).__name__)
            if isinstance(error, OSError):  # also ssl.SSLError
                raise RuntimeError(
                    "the certificates of the environment (SSL_CERT_FILE, SSL_CERT_DIR) cannot be read "
                    f"({why}): correct the variable, or unset it"
                ) from None
            raise RuntimeError(
                f"a proxy of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) cannot be used ({why}): correct it, "
                f"or add the host of {self._endpoint.shown} to NO_PROXY"
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
        """Return the service's verdict, whose texts do not quote the token, however the reply has escaped it."""
        verdict = await self._answered(problem, response)
        if not self._secrets:
            return verdict
        answer = None if verdict.answer is None else self._without_token(verdict.answer)
        return replace(verdict, answer=answer, reason=self._without_token(verdict.reason))

    def _without_token(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[token]")
        return text

    async def _answered(self, problem: Any, response: str) -> Verdict:
        for attempt in range(self._endpoint.retries + 1):
            try:
                async with self._slots:
                    return await self._attempt(problem, response)
            except _Failure as failure:
                if not failure.retry or attempt == self._endpoint.retries:
                    return failure.verdict
            await asyncio.sleep(pause_s(attempt))
        raise AssertionError("the last attempt returns")

    async def _attempt(self, problem: Any, response: str) -> Verdict:
        """Return the verdict of one attempt, or raise _Failure, and no other exception: the service, its replies and
        the libraries that read them are outside."""
        endpoint = self._endpoint
        try:
            request = json.dumps({"problem": problem, "response": response})  # \\u escapes express any text
        except Exception as error:
            raise self._failure(f"was not called: the problem is not JSON ({error})", retry=False) from None
        try:
            async with asyncio.timeout(endpoint.timeout_s):
                status, body = await self._post(request)
        except TimeoutError:
            reason = (
                f"{endpoint.shown} did not answer within {endpoint.timeout_s:g} s (task.options.timeout_s)"
            )
            raise _Failure(failed_verdict(reason), retry=True) from None
        except Exception as error:
            raise self._failure(f"cannot be reached ({type(error).__name__}: {error})", retry=True) from None
        if status != httpx.codes.OK:
            retry = status == httpx.codes.TOO_MANY_REQUESTS or status >= 500
            raise self._failure(f"answered with status {status}: {_shown(body)}", retry)
        try:
            return read_reply(body, endpoint.correct_from)
        except ValueError as error:
            raise self._failure(f"answered with {error}", retry=False) from None

    async def _post(self, request: str) -> tuple[int, bytes]:
        """Return the status and the body of the reply, without the token. A body that is too long is cut, and is then
        not JSON."""
        assert self._client is not None, "call start first"
        # A compressed body of a few kilobytes may unpack to gigabytes.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        async with self._client.stream("POST", self._endpoint.url, content=request, headers=headers) as reply:
            received = bytearray()
            async for part in reply.aiter_raw():
                received += part
                if len(received) > MAX_REPLY_BYTES:
                    break
        # Here and not only in the verdict, because a message quotes a part of the body, which may end in the token.
        body = bytes(received[: MAX_REPLY_BYTES + 1])
        for secret in self._secrets:
            body = body.replace(secret.encode(), b"[token]")
        return reply.status_code, body

    def _failure(self, what: str, retry: bool) -> _Failure:
        return _Failure(failed_verdict(f"{self._endpoint.shown} {shown_text(what)}"), retry)


def read_reply(body: bytes, correct_from: float) -> Verdict:
    """Return the verdict that the body of a reply means. This is the wall: any body is a verdict or a ValueError.

    Raises:
        ValueError: if it is no verdict, whatever exception that causes. The message says what it is instead.
    """
    if len(body) > MAX_REPLY_BYTES:
        raise ValueError(f"more than {MAX_REPLY_BYTES} bytes: {_shown(body)}")
    try:
        reply = json.loads(body)
    except Exception as error:  # ValueError, RecursionError, MemoryError: whatever the parser raises
        raise ValueError(f"text that is not JSON: {_shown(body)} ({type(error).__name__})") from None
    if not isinstance(reply, dict):
        raise ValueError(f"JSON that is not an object: {_shown(body)}")
    try:
        return verdict_of(reply, correct_from)
    except Exception as error:
        raise ValueError(f"an invalid verdict: {str(error) or type(error).__name__}") from None


def _shown(body: bytes) -> str:
    text = " ".join(body[:1000].decode("utf-8", "replace").split())
    return repr(text if len(text) <= 100 else f"{text[:100]}…")
