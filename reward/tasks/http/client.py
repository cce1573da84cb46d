"""Asks an HTTP endpoint for verdicts: so many at a time, again when it fails for the moment, and never for ever.

request   POST {"problem": …, "response": "…"}
reply     200 {"reward": 0.5, "outcome": "correct", "answer": "7", "reason": "…"}; one of the first two will do
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from cluster.core.types import Verdict
from reward.verdicts import verdict_of

FIRST_PAUSE_S = 0.5
"""Before the first retry; doubled for each further one."""
MAX_REPLY_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Endpoint:
    url: str
    timeout_s: float
    """Of one attempt, from its beginning to the last byte of the reply."""
    retries: int
    concurrency: int
    correct_from: float


class _Failure(Exception):
    """There is no verdict; `again` says whether there may be one soon."""

    def __init__(self, verdict: Verdict, again: bool) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict
        self.again = again


class HttpScorer:
    """Verdicts of `endpoint`. Whatever it does, it costs the responses their verdicts, and nothing else."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._places = asyncio.Semaphore(endpoint.concurrency)
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        """Nothing is asked yet."""
        self._client = httpx.AsyncClient(
            timeout=None,  # ours is of the whole attempt
            limits=httpx.Limits(max_connections=self._endpoint.concurrency),
        )

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def score(self, asked: Sequence[tuple[Any, str]]) -> AsyncIterator[list[tuple[int, Verdict]]]:
        """Verdicts as they come, each with the place of what it is on."""
        places = {
            asyncio.create_task(self._score(problem, text)): place
            for place, (problem, text) in enumerate(asked)
        }
        pending = set(places)
        try:
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                yield [(places[task], task.result()) for task in done]
        finally:
            for task in pending:
                task.cancel()

    async def _score(self, problem: Any, response: str) -> Verdict:
        for attempt in range(self._endpoint.retries + 1):
            try:
                async with self._places:
                    return await self._attempt(problem, response)
            except _Failure as failure:
                if not failure.again or attempt == self._endpoint.retries:
                    return failure.verdict
            await asyncio.sleep(FIRST_PAUSE_S * 2**attempt)
        raise AssertionError("the last attempt returns")

    async def _attempt(self, problem: Any, response: str) -> Verdict:
        """Raises _Failure."""
        endpoint = self._endpoint
        try:
            async with asyncio.timeout(endpoint.timeout_s):
                status, body = await self._post({"problem": problem, "response": response})
        except TimeoutError:
            reason = f"{endpoint.url} did not answer within {endpoint.timeout_s:g} s (task.options.timeout_s)"
            raise _Failure(Verdict("timeout", 0.0, None, reason), again=True) from None
        except httpx.HTTPError as error:
            raise self._failure(f"cannot be reached ({type(error).__name__}: {error})", again=True) from None
        except (TypeError, ValueError) as error:
            raise self._failure(f"was not asked: the problem is not JSON ({error})", again=False) from None
        if status != httpx.codes.OK:
            again = status == httpx.codes.TOO_MANY_REQUESTS or status >= 500
            raise self._failure(f"answered with status {status}: {_shown(body)}", again)
        try:
            reply = json.loads(body)
        except ValueError:
            raise self._failure(f"answered with what is not JSON: {_shown(body)}", again=False) from None
        if not isinstance(reply, dict):
            raise self._failure(f"answered with what is no JSON object: {_shown(body)}", again=False)
        try:
            return verdict_of(reply, endpoint.correct_from)
        except ValueError as error:
            raise self._failure(f"answered with nonsense: {error}", again=False) from None

    async def _post(self, question: dict[str, Any]) -> tuple[int, bytes]:
        assert self._client is not None, "start comes first"
        body = json.dumps(question)  # with \\u escapes, so that halves of surrogate pairs travel as well
        async with self._client.stream(
            "POST", self._endpoint.url, content=body, headers={"Content-Type": "application/json"}
        ) as reply:
            received = bytearray()
            async for part in reply.aiter_bytes():
                received += part
                if len(received) > MAX_REPLY_BYTES:
                    break
            return reply.status_code, bytes(received)

    def _failure(self, what: str, again: bool) -> _Failure:
        return _Failure(Verdict("error", 0.0, None, f"{self._endpoint.url} {what}"), again)


def _shown(body: bytes) -> str:
    text = " ".join(body.decode("utf-8", "replace").split())
    return repr(text if len(text) <= 100 else f"{text[:100]}…")
