"""A real engine with seeds, with more prompts than fit into a step, and with weights that change during responses."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
from safetensors.torch import load_file

from cluster.core.config import OnNewWeights
from cluster.core.types import PolicyVersion, Prompt, Response, Sampled, Sampling, VersionSpan
from cluster.runtime.placement import cpu_environment
from learner.model.policy import Policy
from learner.weights.pull import HostCopy, file_parts
from tests.integration.engines import (
    Engines,
    actor,
    engine_options,
    load_policy,
    logprobs_of,
    random_tokens,
    sampling_gaps,
    save_model,
)

NEAR = 1e-4
"""The bound of |Δ log p| between engine and transformers with equal weights. The two models differ by 1 or more."""
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("models")
    return [save_model(directory / f"{seed}", tied=True, seed=seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def policies(models: list[Path]) -> list[Policy]:
    return [load_policy(model) for model in models]


@pytest.fixture(scope="module")
def engine(local_ray: None, models: list[Path]) -> Iterator[ray.actor.ActorHandle]:
    """Start an engine with the first model."""
    engine = actor(Engines).remote()
    ray.get(engine.start.remote(engine_options(models[0], max_sequences=64)))
    yield engine
    ray.get(engine.stop.remote())


def published_version(version: int, models: Sequence[Path], policies: Sequence[Policy]) -> PolicyVersion:
    """Return a published version. Even versions have the weights of the first model, odd ones those of the second."""
    model, policy, probe = models[version % 2], policies[version % 2], random_tokens(1)
    parts = file_parts(load_file(model / "model.safetensors"), version, HostCopy())
    return PolicyVersion(version, ray.put(parts), (probe,), (logprobs_of(policy, probe),))


def prompt(id_: str, seed: int, length: int = 300, responses: int = 1, max_tokens: int = 150) -> Prompt:
    sampling = Sampling(responses, 1.0, max_tokens, seed=1000 * seed)
    return Prompt(id_, "", random_tokens(seed, length), None, sampling)


async def test_seeded_prompts_that_do_not_fit_into_a_step_are_sampled_reproducibly(
    engine: ray.actor.ActorHandle,
) -> None:
    """60 prompts of 400 tokens are submitted at once, and a step of the engine takes 8,192 tokens.

    An engine that split a prompt over two steps would crash.
    """
    prompts = [prompt(f"{seed}", seed, length=400, max_tokens=50) for seed in range(60)]
    found: list[dict[str, list[int]]] = []
    for _ in range(2):
        await engine.submit.remote(prompts)
        sampled: list[Sampled] = await engine.collect.remote(len(prompts))
        found.append({one.prompt_id: one.response.token_ids.tolist() for one in sampled})
    assert found[0] == found[1]
    assert len({tuple(tokens) for tokens in found[0].values()}) > 50, (
        "different seeds must give different responses"
    )


@pytest.mark.parametrize("mode", ["continue", "finish", "restart"])
async def test_responses_in_flight_are_treated_as_configured_when_weights_change(
    engine: ray.actor.ActorHandle, models: list[Path], policies: list[Policy], mode: OnNewWeights
) -> None:
    """The log-probability of every token is that of the weights that its span names.

    This includes all previous tokens, which are computed with the same weights: no cache keeps old values.
    """
    first = {"continue": 1, "finish": 3, "restart": 5}[mode]
    old, new = policies[first % 2], policies[(first + 1) % 2]
    await engine.use.remote(mode)
    assert (await engine.update_weights.remote(published_version(first, models, policies))).largest < NEAR

    short = prompt("short", 1, max_tokens=3)
    long = prompt("long", 2, responses=48)
    again = prompt("again", 2, responses=8)  # its prompt is in the prefix cache
    await engine.submit.remote([short, long])
    before = await engine.collect.remote(1)  # the short response has ended, others are in flight
    second = published_version(first + 1, models, policies)
    assert (await engine.update_weights.remote(second)).largest < NEAR
    await engine.submit.remote([again])
    after = await engine.collect.remote(48 + 8 + 1 - len(before))

    sampled = {(one.prompt_id, one.index): one.response for one in [*before, *after]}
    for (prompt_id, _), response in sampled.items():
        own_prompt = {"short": short, "long": long, "again": again}[prompt_id]
        assert_spans_cover(response)
        gaps = {
            version: sampling_gaps(own_prompt, [response], policy)[0]
            for version, policy in ((first, old), (first + 1, new))
        }
        for version, start, end in response.version_spans:
            assert gaps[version][start:end].max(initial=0) < NEAR

    versions = {key: tuple(span.version for span in one.version_spans) for key, one in sampled.items()}
    ended_before = {(one.prompt_id, one.index) for one in before}
    in_flight = {versions[key] for key in versions if key[0] == "long" and key not in ended_before}
    if mode == "continue":
        assert (first, first + 1) in in_flight
    elif mode == "finish":
        assert in_flight == {(first,)}
    else:
        assert (first + 1,) in in_flight
        assert in_flight <= {(first + 1,), (first,)}, "some responses may have ended just before"
    assert {versions["again", index] for index in range(8)} == {(first + 1,)}


async def test_the_digest_of_the_weights_changes_with_them_and_with_nothing_else(
    engine: ray.actor.ActorHandle, models: list[Path], policies: list[Policy]
) -> None:
    """On some CPUs vLLM removes the weights of linear layers after packing them, so their digests are those of nothing.
    Then the embedding and the norms remain."""
    await engine.use.remote("continue")
    digests = []
    for version in (7, 8, 9, 10):
        await engine.update_weights.remote(published_version(version, models, policies))
        digests.append(await engine.weights_digest.remote())
    assert None not in digests, "this version of vLLM has no checksums"
    assert digests[0] == digests[2]
    assert digests[1] == digests[3]
    assert digests[0] != digests[1]


def assert_spans_cover(response: Response) -> None:
    spans: tuple[VersionSpan, ...] = response.version_spans
    assert spans[0].start == 0
    assert spans[-1].end == len(response.token_ids)
    assert all(one.end == next_.start for one, next_ in itertools.pairwise(spans))


async def test_a_response_that_takes_too_long_is_truncated(engine: ray.actor.ActorHandle) -> None:
    """At a low temperature, sampling nearly always takes the likeliest token and does not end by itself."""
    sampling = Sampling(1, 0.01, 480, seed=0)
    prompts = [Prompt(f"{seed}", "", random_tokens(seed, 20), None, sampling) for seed in range(16)]

    async def sample() -> dict[str, Response]:
        await engine.submit.remote(prompts)
        return {one.prompt_id: one.response for one in await engine.collect.remote(len(prompts))}

    whole = await sample()
    await engine.truncate_after.remote(0.05)
    truncated = await sample()
    assert {id_ for id_, one in whole.items() if len(one.token_ids) == 480}, (
        "some responses must reach the limit"
    )
    for id_, response in truncated.items():
        tokens, all_tokens = response.token_ids, whole[id_].token_ids
        assert 0 < len(tokens) == len(response.logprobs)
        assert tokens.tolist() == all_tokens[: len(tokens)].tolist(), (
            "a truncated response must be a prefix of the complete one"
        )
        assert response.finish_reason == (
            whole[id_].finish_reason if len(tokens) == len(all_tokens) else "length"
        )
        assert_spans_cover(response)
        if len(all_tokens) == 480:
            assert len(tokens) < 480
            assert response.finish_reason == "length"


ALONE = """
import asyncio, pickle, sys
from rollout.engine.worker import RolloutWorker

async def main():
    worker = RolloutWorker("alone", pickle.load(sys.stdin.buffer))
    await worker.start()
    print("up", flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.mark.parametrize("tensor_parallel_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_engine_ends_with_its_worker(models: list[Path], tensor_parallel_size: int) -> None:
    """The worker runs without Ray, which would end the processes of a worker if its raylet is alive."""
    worker = subprocess.Popen(
        [sys.executable, "-c", ALONE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | cpu_environment(1, on_gpu=False),
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    options = replace(engine_options(models[0]), tensor_parallel_size=tensor_parallel_size)
    worker.stdin.write(pickle.dumps(options))
    worker.stdin.close()
    assert b"up\n" in iter(worker.stdout.readline, b"")
    started = psutil.Process(worker.pid).children(recursive=True)
    assert any("EngineCore" in child.name() for child in started)
    worker.kill()
    worker.wait()
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive
