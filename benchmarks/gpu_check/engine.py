"""Part 9: one vLLM engine, as a rollout worker runs it: sampling, new weights, an update during sampling, sleep, and
the probe's log-probabilities against the learner's.

The learner's side runs in another process, because vLLM changes parts of torch in its own. Weights arrive in a file,
without Ray's object store: the transports have tests of their own.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_check.findings import Findings, Settings
from cluster.core.actor_options import EngineOptions
from cluster.core.types import LogprobGap, PolicyVersion, Prompt, Response, Sampling
from cluster.core.weight_transport import EngineRoute, WeightTransport

MAX_TOKENS = 512
GAP_LIMITS = {"float32": 0.02, "bfloat16": 0.5}
"""The largest |Δ log p| of a token between engine and learner that rounding explains."""
WAIT_S = 120.0
"""The longest wait for the engine's answer to any one call."""
KV_CACHE_GIB = 0.25
GPU_MEMORY_UTILIZATION = 0.3
RESPONSES = 8


class FileReceiver:
    """A `WeightReceiver` whose versions are paths of safetensors files."""

    def __init__(self, run_id: str) -> None:
        pass

    @asynccontextmanager
    async def arriving(self, version: PolicyVersion, route: Any = None) -> AsyncIterator[EngineRoute]:
        yield EngineRoute("rollout.weights.pull:FileSource", (version.weights, version.version))

    def close(self) -> None:
        pass


def check_engine(settings: Settings, findings: Findings) -> None:
    dtype = "bfloat16" if settings.on_gpu else "float32"
    findings.begin("the learner's side, in another process")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        loaded, versions = process.submit(learner_side, settings, dtype).result()
    from cluster.runtime.placement import cpu_environment

    # vLLM reads them when it is imported.
    os.environ |= cpu_environment(2, settings.on_gpu)
    os.environ["VLLM_WORKER_MULTIPROCESSING_METHOD"] = "spawn"  # which vLLM chooses in Ray's actors
    asyncio.run(_engine(settings, findings, loaded, versions, dtype))


# --- The learner's side.


def learner_side(settings: Settings, dtype: str) -> tuple[str, list[PolicyVersion]]:
    """Write the model that the engine loads, and two versions with other weights. Return the model's directory, and
    the versions with the learner's log-probabilities of the probe, computed on the device in the engine's type."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    from benchmarks.gpu_check.models import SMALL, TINY, device_of, save_model
    from learner.model.policy import Policy, sequence_logprobs
    from learner.model.supervised import character_tokenizer

    # vLLM's attention on CPU supports heads of width 32 and more.
    sizes = TINY | {"num_attention_heads": 2, "num_key_value_heads": 1} if settings.smoke else SMALL
    scratch = Path(settings.scratch)
    generator = np.random.default_rng(0)
    probe = tuple(tuple(generator.integers(3, 20, size=300).tolist()) for _ in range(2))
    versions = []
    for version in range(3):
        directory = save_model(scratch / f"engine-{version}", sizes, seed=version)
        character_tokenizer("0123456789+-*/()=", (), MAX_TOKENS).save_pretrained(directory)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
        path = scratch / f"{version}.safetensors"
        weights = {name: each.detach().contiguous() for name, each in model.named_parameters()}
        save_file(weights, path, metadata={"version": str(version)})
        policy = Policy(model).to(device_of(settings))
        logprobs = tuple(sequence_logprobs(policy, tokens, device_of(settings)) for tokens in probe)
        versions.append(PolicyVersion(version, str(path), probe, logprobs))
    return str(scratch / "engine-0"), versions


# --- The engine's side.


def _options(settings: Settings, model: str, dtype: str) -> EngineOptions:
    return EngineOptions(
        run_id="gpu-check",
        model=model,
        dtype=dtype,
        max_context_tokens=MAX_TOKENS,
        max_sequences=RESPONSES,
        tensor_parallel_size=1,
        kv_cache_gib=KV_CACHE_GIB,
        gpu_memory_utilization=GPU_MEMORY_UTILIZATION,
        on_gpu=settings.on_gpu,
        sleeps=settings.on_gpu,
        transport=WeightTransport(
            sender="", receiver="benchmarks.gpu_check.engine:FileReceiver", coordinator=""
        ),
    )


async def _engine(
    settings: Settings, findings: Findings, model: str, versions: Sequence[PolicyVersion], dtype: str
) -> None:
    from rollout.engine.worker import RolloutWorker

    worker = RolloutWorker("gpu-check", _options(settings, model, dtype))
    findings.begin("starting the engine")
    await worker.start()
    try:
        findings.begin("sampling")
        await _check_sampling(worker, findings)
        findings.begin("a reload")
        await _check_probe(worker, findings, versions, dtype)
        findings.begin("checksums of the weights")
        await _check_digests(worker, findings, versions)
        findings.begin("an update during sampling")
        await _check_update_during_sampling(worker, findings, versions[2], dtype)
        if settings.on_gpu:
            findings.begin("sleeping and waking")
            await _check_sleep(worker, findings, versions[1], dtype)
        else:
            findings.note("vLLM sleeps on GPUs only: sleep level 2 and waking are not checked")
    finally:
        findings.begin("shutting the engine down")
        await worker.shut_down()


def _prompt(tokens: int) -> Prompt:
    ids = tuple(np.random.default_rng(1).integers(3, 20, size=40).tolist())
    return Prompt("gpu-check", "", ids, None, Sampling(RESPONSES, 1.0, tokens, seed=None))


async def _collect(worker: Any) -> list[Response]:
    """Return all responses of one prompt.

    Raises:
        TimeoutError: if the engine does not answer.
    """
    sampled: list[Any] = []
    while len(sampled) < RESPONSES:
        async with asyncio.timeout(WAIT_S):
            sampled += await worker.collect(max_wait_s=WAIT_S / 4)
    return [one.response for one in sampled]


async def _check_sampling(worker: Any, findings: Findings) -> None:
    await worker.submit([_prompt(32)])
    responses = await _collect(worker)
    values = np.concatenate([response.logprobs for response in responses])
    findings.check(
        "the engine samples, with log-probabilities",
        bool(np.isfinite(values).all() and (values <= 1e-3).all()),
        f"{len(responses)} responses, {len(values)} tokens, mean log-probability {values.mean():.3f}",
        "Read the part's log, and start vLLM on this model by itself.",
    )


async def _check_probe(
    worker: Any, findings: Findings, versions: Sequence[PolicyVersion], dtype: str
) -> None:
    """Compare with the learner before and after a reload, and with the version that is not served."""
    loaded, new, _ = versions
    at_start = await worker._probe_gap(loaded)
    _check_gap(findings, "the engine loads what the learner loads", at_start, dtype)
    async with asyncio.timeout(WAIT_S):
        after = await worker.update_weights(new)
    _check_gap(findings, "after a reload the engine has the learner's weights", after, dtype)
    stale = await worker._probe_gap(loaded)
    findings.check(
        "the probe tells served weights from stale ones",
        stale.largest > 2 * GAP_LIMITS[dtype],
        f"|Δ log p| against the former version is at most {stale.largest:.3g}",
        "Report it: a worker that serves stale weights would go unnoticed on this machine.",
    )


async def _check_digests(worker: Any, findings: Findings, versions: Sequence[PolicyVersion]) -> None:
    """Load two versions in turn. The probe of `_check_probe` allows for rounding, and this does not."""
    digests = []
    for version in (*versions[:2], *versions[:2]):
        async with asyncio.timeout(WAIT_S):
            await worker.update_weights(version)
        async with asyncio.timeout(WAIT_S):
            digests.append(await worker.weights_digest())
    if None in digests:
        findings.note("this build of vLLM computes no checksums of weights: they are not compared")
        return
    findings.check(
        "equal weights have equal checksums, and others have others",
        digests[0] == digests[2] != digests[1] == digests[3],
        f"the checksums of versions 0, 1, 0, 1: {', '.join(digest[:8] for digest in digests)}",
        "Do not train with this engine, and report it: a reload leaves something of the former weights.",
    )


async def _check_update_during_sampling(
    worker: Any, findings: Findings, version: PolicyVersion, dtype: str
) -> None:
    """Pause the engine during sampling, give it new weights, and let it continue."""
    await worker.submit([_prompt(MAX_TOKENS - 64)])
    for _ in range(int(WAIT_S / 0.01)):
        if any(worker._tokens_in_flight().values()):
            break
        await asyncio.sleep(0.01)
    async with asyncio.timeout(WAIT_S):
        gap = await worker.update_weights(version)
    responses = await _collect(worker)
    _check_gap(findings, "after an update during sampling the engine has the learner's weights", gap, dtype)
    spans = sorted({tuple(span.version for span in response.version_spans) for response in responses})
    findings.check(
        "responses continue under the new weights",
        any(len(span) > 1 for span in spans),
        f"the versions of the responses' parts: {spans}",
        "Set rollout.on_new_weights: finish or restart, and report it.",
    )


async def _check_sleep(worker: Any, findings: Findings, version: PolicyVersion, dtype: str) -> None:
    import torch

    free_before, _ = torch.cuda.mem_get_info()
    async with asyncio.timeout(WAIT_S):
        await worker.sleep()
    free, total = torch.cuda.mem_get_info()
    released = (free - free_before) / total
    findings.check(
        "an engine that sleeps releases its memory",
        released > GPU_MEMORY_UTILIZATION / 2,
        f"{(free - free_before) / 2**30:.2f} GiB, {released:.0%} of the device",
        "Set rollout.sleep_while_learning: false, and give learner and engines GPUs of their own.",
    )
    async with asyncio.timeout(WAIT_S):
        gap = await worker.update_weights(version)
    _check_gap(findings, "after sleep and waking the engine has the learner's weights", gap, dtype)
    await _check_sampling(worker, findings)


def _check_gap(findings: Findings, name: str, gap: LogprobGap, dtype: str) -> None:
    findings.check(
        name,
        gap.largest <= GAP_LIMITS[dtype],  # also False for NaN
        f"|Δ log p| on the probe is at most {gap.largest:.3g}, limit {GAP_LIMITS[dtype]:g} in {dtype}",
        "Do not train with this engine. Set model.dtype: float32 to see whether it is rounding, and report it.",
    )
