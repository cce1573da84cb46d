"""The rollout worker: a Ray actor around one vLLM engine.

It accepts prompts at any time and returns each response when it ends. It updates to published weight versions, and
after every update compares its log-probabilities on a probe with the learner's. It does not know rewards or losses. If
the engine dies, the process ends, and the supervisor of the fleet replaces it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from cluster.core.actor_options import EngineOptions
from cluster.core.config import OnNewWeights
from cluster.core.network import use_interface_of
from cluster.core.types import (
    LOADED_VERSION,
    LogprobGap,
    PolicyVersion,
    Prompt,
    Response,
    Sampled,
    Sampling,
)
from cluster.core.weight_transport import EngineRoute, WeightReceiver, transport_part
from rollout.engine.answers import EngineAnswerError, Limits, only_completion, response_of
from rollout.engine.response_clock import ResponseClock
from rollout.engine.vllm_args import vllm_arguments
from rollout.engine.weights_digest import digest_of

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")
LOOK_EVERY_S = 0.2
"""The interval at which the progress of the engine's responses is observed."""
KILLED_WITHIN_S = 3.0
"""The time in which a process of the engine must have ended after it was killed."""
ANSWER_ATTEMPTS = 3
"""The number of times that a response is asked for, if the engine's answers are no valid responses."""
_PAUSE_MODES: dict[OnNewWeights, str] = {"continue": "keep", "finish": "wait", "restart": "abort"}


def logprob_gap(served: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> LogprobGap:
    """Return the gap over all tokens of several sequences, [T - 1] each. NaN or infinity in any of them remains.

    Raises:
        ValueError: if there are no tokens, or not the same ones on both sides.
    """
    pairs = zip(served, expected, strict=True)
    with np.errstate(invalid="ignore"):  # inf - inf
        gaps = [np.abs(np.subtract(ours, theirs, dtype=np.float64)) for ours, theirs in pairs]
    whole = np.concatenate(gaps)
    return LogprobGap(float(whole.mean()), float(whole.max()))


class RolloutWorker:
    """One vLLM engine. `RayWorkerFactory` in cluster/training/actors.py creates it as an actor.

    Usage:
        worker: Actor[RolloutWorker] = Actor(ray.remote(RolloutWorker).remote("rollout-0", options))
        await worker.call(RolloutWorker.start)
        gap = await worker.call(RolloutWorker.update_weights, version)   # see `logprob_gap`
        await worker.call(RolloutWorker.submit, prompts)
        sampled = await worker.call(RolloutWorker.collect, max_wait_s=5.0)   # repeatedly
    """

    def __init__(self, name: str, options: EngineOptions) -> None:
        self._name = name
        self._options = options
        self._requests = itertools.count()
        self._receiver: WeightReceiver = transport_part(options.transport.receiver)(options.run_id)
        self._engine: Any = None
        self._version = LOADED_VERSION
        self._vocabulary = sys.maxsize
        """The number of the model's token ids. Known after `start`."""
        self._ending = False
        self._updating = False
        """True while the engine loads weights, digests them or falls asleep. The caller of that limits its time."""
        self._asleep = False
        self._sampled_tokens: dict[str, int] = {}
        """The number of tokens of each running request, when it was last observed."""
        self._sampling: set[asyncio.Task[None]] = set()
        self._sampled: list[Sampled] = []
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        """Set while nothing is being sampled, or after a failure."""
        self._failure: BaseException | None = None
        timeout_s = options.response_timeout_s
        self._clock = None if timeout_s is None else ResponseClock(timeout_s)
        self._truncating: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Build the engine and generate once, so that nothing is compiled later. Return the process id."""
        options = self._options
        if not options.on_gpu and options.tensor_parallel_size == 1:
            # vLLM reads this variable when it is imported. By default vLLM would run the model of a CPU engine in
            # another process, only to set its number of threads, which is already set. That process takes seconds to
            # start, and adds communication to each decoding step.
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

        import ray

        os.environ |= use_interface_of(ray.util.get_node_ip_address())
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**vllm_arguments(options)))
        self._vocabulary = self._engine.model_config.get_vocab_size()
        await self._engine.collective_rpc("end_with", args=(os.getpid(),))
        warm_up = Sampling(responses=1, temperature=1.0, max_response_tokens=4, seed=None)
        await self._sample((0, 1), warm_up, None, self._next_id())
        await self._engine.update_weight_version(str(LOADED_VERSION))
        if self._clock is not None:
            self._truncating = asyncio.create_task(self._truncate_overdue(self._clock))
            self._truncating.add_done_callback(self._note_failure)
        return os.getpid()

    async def submit(self, prompts: Sequence[Prompt]) -> None:
        """Start to sample the responses to every prompt. `collect` returns them."""
        self._idle.clear()
        for prompt in prompts:
            for index in prompt.sampling.indexes:
                task = asyncio.create_task(self._sample_response(prompt, index))
                self._sampling.add(task)
                task.add_done_callback(self._note_end)

    async def collect(self, max_wait_s: float, gather_s: float = 0.0) -> list[Sampled]:
        """Wait for a response to end, and return all that have ended since the last call.

        After the first response the call waits up to `gather_s` for others in flight, so that fewer calls are needed.
        If no response ends within `max_wait_s`, it returns an empty list as a heartbeat, but only if the engine answers
        and makes progress. If the engine hangs, the call does not return. While the engine updates, digests its weights
        or falls asleep, it is not asked, since it cannot answer: each of these has its own deadline.

        Raises:
            Exception: the error of a response that could not be sampled although the engine is alive.
        """
        try:
            async with asyncio.timeout(max_wait_s):
                await self._news.wait()
        except TimeoutError:
            if not self._updating:
                await self._guarded(self._engine.is_sleeping())
                await self._progress()
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(gather_s):
                    await self._idle.wait()
        if self._failure is not None:
            raise self._failure
        self._news.clear()
        sampled, self._sampled = self._sampled, []
        return sampled

    async def _progress(self) -> None:
        """Return when the engine has sampled a token since the last call, or has nothing to sample."""
        while self._sampling and not self._updating and not self._news.is_set():
            tokens = self._tokens_in_flight()
            if tokens != self._sampled_tokens:
                self._sampled_tokens = tokens
                return
            await asyncio.sleep(LOOK_EVERY_S)

    def _tokens_in_flight(self) -> dict[str, int]:
        """Return the number of sampled tokens of each running request."""
        states = self._engine.output_processor.request_states.values()
        return {state.external_req_id: state.detokenizer.num_output_tokens() for state in states}

    async def _truncate_overdue(self, clock: ResponseClock) -> None:
        """Abort responses that take too long, until canceled. They end with the tokens that they have."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if overdue := clock.look(self._tokens_in_flight(), time.monotonic()):
                await self._engine.abort(overdue)

    async def update_weights(self, version: PolicyVersion, route: Any = None) -> LogprobGap:
        """Serve a published version. Return the gap to the learner on the version's probe.

        `route` tells the weight transport how the version arrives. The engine keeps sampling during the transfer,
        and pauses only to load the weights. `options.on_new_weights` decides what happens to responses in flight; their
        caches are computed again.

        Raises:
            RuntimeError: if the weights did not arrive. The engine then waits for the version by another route.
        """
        async with self._receiver.arriving(version, route) as engine_route:
            self._updating = True  # an update has its own deadline, and no tokens are sampled during it
            try:
                await self._guarded(self._swap(engine_route, version))
                return await self._guarded(self._probe_gap(version))
            finally:
                self._updating = False

    async def _swap(self, route: EngineRoute, version: PolicyVersion) -> None:
        if self._asleep:
            await self._engine.wake_up(["weights"])
        else:
            mode = _PAUSE_MODES[self._options.on_new_weights]
            await self._engine.pause_generation(mode=mode, clear_cache=True)
        await self._engine.collective_rpc("receive_version", args=(*route, version.layout))
        await self._engine.update_weight_version(str(version.version))
        self._version = version.version  # before anything is sampled with it
        if self._asleep:
            await self._engine.wake_up(["kv_cache"])
            self._asleep = False
        else:
            await self._engine.resume_generation()

    async def sleep(self) -> None:
        """Finish the responses in flight, then release the GPU memory of weights and caches until the next update.

        The update wakes the engine: memory for the weights is allocated first, and memory for the caches after the
        weights are loaded.
        """
        self._updating = True
        try:
            await self._guarded(self._engine.sleep(level=2, mode="wait"))
        finally:
            self._updating = False
        self._asleep = True

    async def _probe_gap(self, version: PolicyVersion) -> LogprobGap:
        """Return the gap between the served weights and the learner's values for `version`, over all tokens."""
        served = [await self._score(tokens) for tokens in version.probe_tokens]
        return logprob_gap(served, version.probe_logprobs)

    async def weights_digest(self) -> str | None:
        """Return a digest of all parameters of the engine, or None if this build of vLLM cannot compute checksums.

        The engine copies all of them to the host for this and hashes them there, and does nothing else meanwhile. So
        it is no part of an update: the GPU check compares digests (benchmarks/gpu_check/engine.py).
        """
        if not hasattr(self._engine, "compute_weight_checksums"):
            return None
        self._updating = True
        try:
            checksums = await self._guarded(self._engine.compute_weight_checksums())
        finally:
            self._updating = False
        return digest_of(checksums)

    async def version(self) -> int:
        """Return the weight version that is served; `LOADED_VERSION` before the first update. Also a sign of life."""
        return self._version

    async def shut_down(self) -> None:
        """End the engine's processes. The actor can be killed afterwards."""
        self._ending = True
        if self._truncating is not None:
            self._truncating.cancel()
        if self._engine is not None:
            # This takes some seconds. An engine that is killed leaves semaphores in shared memory.
            self._engine.shutdown()
            # After 5 s vLLM kills the processes that are left, and does not wait for their end.
            for process in multiprocessing.active_children():
                process.join(KILLED_WITHIN_S)
        self._receiver.close()

    async def _sample_response(self, prompt: Prompt, index: int) -> None:
        """Sample one response. An answer that is none is asked for again.

        Raises:
            EngineAnswerError: if no answer was valid. The process is then replaced, and other workers get the prompt.
        """
        for attempt in itertools.count(1):
            try:
                response = await self._answer(prompt, index)
            except EngineAnswerError as error:
                logger.warning("%s, response %d, attempt %d: %s", prompt.id, index, attempt, error)
                if attempt == ANSWER_ATTEMPTS:
                    raise
            else:
                self._sampled.append(Sampled(prompt.id, index, response))
                self._news.set()
                return

    async def _answer(self, prompt: Prompt, index: int) -> Response:
        """Return the engine's next answer.

        Raises:
            EngineAnswerError: if it is no valid response.
        """
        prefix, sampling = prompt.prefix(index), prompt.sampling
        seed = None if sampling.seed is None else sampling.seed + index
        continued = replace(sampling, max_response_tokens=sampling.max_response_tokens - len(prefix))
        while True:
            request_id = self._next_id()
            try:
                completion = await self._guarded(
                    self._sample((*prompt.token_ids, *prefix), continued, seed, request_id)
                )
            finally:
                truncated = self._was_overdue(request_id)
            # Otherwise new weights have aborted the request, and it starts again with them.
            if truncated or getattr(completion, "finish_reason", None) != "abort":
                return self._to_response(completion, prefix, continued.max_response_tokens)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._sampling.discard(task)
        if not self._sampling:
            self._idle.set()
        self._note_failure(task)

    def _note_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failure = failure
            self._news.set()
            self._idle.set()

    def _next_id(self) -> str:
        return f"{self._name}-{next(self._requests)}"

    def _was_overdue(self, request_id: str) -> bool:
        if self._clock is None or request_id not in self._clock.overdue:
            return False
        self._clock.overdue.remove(request_id)
        return True

    async def _sample(
        self, token_ids: Sequence[int], sampling: Sampling, seed: int | None, request_id: str
    ) -> Any:
        """Return one completion of vLLM.

        Raises:
            EngineAnswerError: if there is not exactly one.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_response_tokens,
            seed=seed,
            logprobs=0,
            # Otherwise vLLM creates a dictionary and a text per token. A response is decoded once, at its end.
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        return only_completion(await self._run(token_ids, parameters, request_id))

    async def _score(self, token_ids: Sequence[int]) -> np.ndarray:
        """Return the log-probabilities of `token_ids[1:]` at temperature 1 with the served weights, float32 [T - 1].

        Whatever else the engine answers is an exception, which costs this process and nothing more.
        """
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=1.0)
        output = await self._run(token_ids, parameters, self._next_id())
        rows = zip(token_ids[1:], output.prompt_logprobs[1:], strict=True)
        return np.array([row[token].logprob for token, row in rows], dtype=np.float32)

    async def _run(self, token_ids: Sequence[int], parameters: Any, request_id: str) -> Any:
        from vllm.inputs import tokens_input

        output = None
        # vLLM processes prompts that it must render in a thread. This is the form that its renderer would return.
        async for news in self._engine.generate(tokens_input(list(token_ids)), parameters, request_id):
            output = news
        return output

    def _to_response(self, completion: Any, prefix: tuple[int, ...], max_tokens: int) -> Response:
        """Convert a completion of vLLM to a response, which begins with `prefix`.

        Raises:
            EngineAnswerError: if it is no valid response.
        """
        limits = Limits(max_tokens, self._vocabulary, self._version)
        return response_of(completion, prefix, limits, self._engine.get_tokenizer())

    async def _guarded(self, work: Awaitable[ResultT]) -> ResultT:
        """Await `work`. If the engine has died, end this process: a dead engine cannot be used, and the process must be
        replaced."""
        try:
            return await work
        except Exception:
            if self._engine.errored and not self._ending:
                logger.exception("the engine died; this process ends, and the fleet replaces it")
                sys.stderr.flush()
                os._exit(1)
            raise
