"""The rollout worker: a Ray actor around one vLLM engine.

It is fed prompts at any time and hands over each response when it ends; it pulls published weights by version, and
proves after every pull that it serves them. It knows nothing of rewards or losses. An engine that died, or that failed
to take new weights, ends the process: supervision replaces it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from cluster.core.actor_options import EngineOptions
from cluster.core.config import OnNewWeights
from cluster.core.network import use_interface_of
from cluster.core.types import LOADED_VERSION, PolicyVersion, Prompt, Response, Sampled, Sampling, VersionSpan
from cluster.core.weight_transport import EngineRoute, WeightReceiver, transport_part
from rollout.engine.response_clock import ResponseClock
from rollout.engine.vllm_args import vllm_arguments

logger = logging.getLogger(__name__)


LOOK_EVERY_S = 0.2
"""At an engine of which it is asked whether it moves."""
_PAUSE_MODES: dict[OnNewWeights, str] = {"continue": "keep", "finish": "wait", "restart": "abort"}


class RolloutWorker:
    """One vLLM engine. `cluster/training/worker_factory.py` makes it an actor.

    Usage:
        worker = ray.remote(RolloutWorker).remote("worker-0", options)
        await worker.start.remote()
        gap = await worker.pull_weights.remote(policy)
        await worker.submit.remote(prompts)
        sampled = await worker.collect.remote(max_wait_s=5.0)   # again and again
    """

    def __init__(self, name: str, options: EngineOptions) -> None:
        self._name = name
        self._options = options
        self._requests = itertools.count()
        self._receiver: WeightReceiver = transport_part(options.transport.receiver)(options.run_id)
        self._engine: Any = None
        self._version = LOADED_VERSION
        self._ending = False
        self._updating = False
        self._asleep = False
        self._sampled_tokens: dict[str, int] = {}
        """Of each request that was running when last looked."""
        self._sampling: set[asyncio.Task[None]] = set()
        self._sampled: list[Sampled] = []
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        """Nothing is being sampled, or it failed."""
        self._failure: BaseException | None = None
        timeout_s = options.response_timeout_s
        self._clock = None if timeout_s is None else ResponseClock(timeout_s)
        self._cutting_off: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Build the engine and generate once, so that nothing is compiled later. Returns the process id."""
        options = self._options
        if not options.on_gpu and options.tensor_parallel_size == 1:
            # Read by vLLM when it is imported. On CPU it would put the model into one more process, which costs
            # seconds to start and a hop per decoding step, only to set the number of threads, and that is set already.
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

        import ray

        os.environ |= use_interface_of(ray.util.get_node_ip_address())
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**vllm_arguments(options)))
        await self._engine.collective_rpc("end_with", args=(os.getpid(),))
        warm_up = Sampling(responses=1, temperature=1.0, max_response_tokens=4, seed=None)
        await self._sample((0, 1), warm_up, None, self._next_id())
        await self._engine.update_weight_version(str(LOADED_VERSION))
        if self._clock is not None:
            self._cutting_off = asyncio.create_task(self._cut_off(self._clock))
            self._cutting_off.add_done_callback(self._note_failure)
        return os.getpid()

    async def submit(self, prompts: Sequence[Prompt]) -> None:
        """Begin to sample every prompt's responses. They are handed over by `collect`."""
        self._idle.clear()
        for prompt in prompts:
            for index in range(prompt.sampling.responses):
                task = asyncio.create_task(self._sample_response(prompt, index))
                self._sampling.add(task)
                task.add_done_callback(self._note_end)

    async def collect(self, max_wait_s: float, gather_s: float = 0.0) -> list[Sampled]:
        """The responses that ended since the last call, after waiting for one if there is none. With one, others are
        waited for `gather_s` longer while there are any, so that fewer calls bring all.

        After `max_wait_s` without any, an empty list is the engine's sign of life: it was asked for one, and it goes on
        with what it has. From one that stands still there is no answer.

        Raises:
            Exception: sampling failed, though the engine lives.
        """
        try:
            async with asyncio.timeout(max_wait_s):
                await self._news.wait()
        except TimeoutError:
            await self._guarded(self._engine.is_sleeping())
            await self._moved()
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(gather_s):
                    await self._idle.wait()
        if self._failure is not None:
            raise self._failure
        self._news.clear()
        sampled, self._sampled = self._sampled, []
        return sampled

    async def _moved(self) -> None:
        """Return when the engine has sampled a token since this was last asked, or has nothing to sample."""
        while self._sampling and not self._updating and not self._news.is_set():
            tokens = self._tokens_in_flight()
            if tokens != self._sampled_tokens:
                self._sampled_tokens = tokens
                return
            await asyncio.sleep(LOOK_EVERY_S)

    def _tokens_in_flight(self) -> dict[str, int]:
        """How many tokens each running request has sampled."""
        states = self._engine.output_processor.request_states.values()
        return {state.external_req_id: state.detokenizer.num_output_tokens() for state in states}

    async def _cut_off(self, clock: ResponseClock) -> None:
        """End what takes too long, again and again. Each then ends with the tokens that it has."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if overdue := clock.look(self._tokens_in_flight(), time.monotonic()):
                await self._engine.abort(overdue)

    async def update_weights(self, version: PolicyVersion, route: Any = None) -> float:
        """Serve a published version. Return the largest |Δ log p| against the learner on the version's probe.

        `route` says how the version arrives, in the weight transport's own terms. The engine keeps sampling while the
        weights are on their way, and stops only to load them. What becomes of responses in flight is
        `options.on_new_weights`; their caches are computed again.

        Raises:
            RuntimeError: if the weights did not arrive. The engine then waits for the version by another route.
        """
        async with self._receiver.arriving(version, route) as engine_route:
            self._updating = True  # the update has its own deadline, and nothing is sampled during it
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
        if self._asleep:
            await self._engine.wake_up(["kv_cache"])
            self._asleep = False
        else:
            await self._engine.resume_generation()
        self._version = version.version

    async def sleep(self) -> None:
        """Finish what is being sampled, then give the GPU's memory back, weights and caches, until new weights come.
        They wake the engine: first memory for the weights is taken, then, when they are loaded, for the caches."""
        await self._guarded(self._engine.sleep(level=2, mode="wait"))
        self._asleep = True

    async def _probe_gap(self, policy: PolicyVersion) -> float:
        """The largest |Δ log p| between what is served and what the learner says of `policy`."""
        probes = zip(policy.probe_tokens, policy.probe_logprobs, strict=True)
        gaps = [np.abs(await self._score(tokens) - expected).max() for tokens, expected in probes]
        return float(max(gaps))

    async def version(self) -> int:
        """The weight version that is served; `LOADED_VERSION` before the first pull. Also answers "are you alive"."""
        return self._version

    async def shut_down(self) -> None:
        """End the engine's processes; the actor can be killed afterwards."""
        self._ending = True
        if self._cutting_off is not None:
            self._cutting_off.cancel()
        if self._engine is not None:
            # In its own time, some seconds: an engine that is cut short leaves semaphores in shared memory.
            self._engine.shutdown()
        self._receiver.close()

    async def _sample_response(self, prompt: Prompt, index: int) -> None:
        seed = prompt.sampling.seed
        seed = None if seed is None else seed + index
        while True:
            request_id = self._next_id()
            completion = await self._guarded(
                self._sample(prompt.token_ids, prompt.sampling, seed, request_id)
            )
            was_cut_off = self._was_cut_off(request_id)
            # Else it was aborted by new weights, under which it begins again.
            if completion.finish_reason != "abort" or was_cut_off:
                break
        self._sampled.append(Sampled(prompt.id, index, self._to_response(completion)))
        self._news.set()

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

    def _was_cut_off(self, request_id: str) -> bool:
        if self._clock is None or request_id not in self._clock.cut_off:
            return False
        self._clock.cut_off.remove(request_id)
        return True

    async def _sample(
        self, token_ids: Sequence[int], sampling: Sampling, seed: int | None, request_id: str
    ) -> Any:
        """One vLLM completion."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_response_tokens,
            seed=seed,
            logprobs=0,
            # Per token vLLM would make a dictionary and a text; a response is put into words once, at its end.
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        output = await self._run(token_ids, parameters, request_id)
        (completion,) = output.outputs
        return completion

    async def _score(self, token_ids: Sequence[int]) -> np.ndarray:
        """Log-probabilities at temperature 1 of `token_ids[1:]` under the served weights, float32 [T - 1]."""
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=1.0)
        output = await self._run(token_ids, parameters, self._next_id())
        rows = zip(token_ids[1:], output.prompt_logprobs[1:], strict=True)
        return np.array([row[token].logprob for token, row in rows], dtype=np.float32)

    async def _run(self, token_ids: Sequence[int], parameters: Any, request_id: str) -> Any:
        from vllm.inputs import tokens_input

        output = None
        # As vLLM's own renderer would give it: what is not rendered takes a way through a thread.
        async for news in self._engine.generate(tokens_input(list(token_ids)), parameters, request_id):
            output = news
        assert output is not None, "vLLM ended a request without an answer"
        assert output.finished
        return output

    def _to_response(self, completion: Any) -> Response:
        """One vLLM completion as a response.

        Raises:
            ValueError: the engine did not say how likely it found one of its tokens, or which weights it used.
        """
        token_ids = np.asarray(completion.token_ids, dtype=np.int64)
        logprobs = np.asarray(
            completion.logprobs.logprobs, dtype=np.float32
        )  # one per position: of the sampled token
        if completion.logprobs.token_ids != list(completion.token_ids):
            raise ValueError("vLLM's log-probabilities are not those of the sampled tokens")
        if not completion.weight_versions:
            raise ValueError("vLLM returned a response without weight versions")
        return Response(
            token_ids=token_ids,
            logprobs=logprobs,
            text=self._engine.get_tokenizer().decode(completion.token_ids, skip_special_tokens=True),
            finish_reason="stop" if completion.finish_reason == "stop" else "length",
            version_spans=tuple(
                VersionSpan(int(span.version), span.start, span.end) for span in completion.weight_versions
            ),
        )

    async def _guarded(self, work: Any) -> Any:
        """Await `work`; if the engine died of it, end this process, for a dead engine in a live actor helps nobody."""
        try:
            return await work
        except Exception:
            if self._engine.errored and not self._ending:
                logger.exception("the engine died; this worker ends so that it is replaced")
                sys.stderr.flush()
                os._exit(1)
            raise
