"""A published weight is a served weight: a real learner, a real engine, and weights that changed since it loaded."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from cluster.config import LearnerConfig, ObjectiveConfig
from cluster.contracts import Group, Prompt, Publication, Response, Sampling
from cluster.placement import cpu_environment
from learner.engine import LearnerOptions
from learner.group import LearnerGroup
from learner.logprobs import sequence_logprobs
from learner.policy import Policy
from learner.rank import LearnerRank
from learner.supervised import character_tokenizer
from learner.weighing import Row, WeighedBatch
from reward.countdown.prompts import ANSWER_TAGS, COMPACT_CHARACTERS
from rollout.worker import EngineOptions, RolloutWorker

MAX_TOKENS = 512
BOUNDS = {
    "float32": 1e-4,
    "bfloat16": 0.15,
}
"""Of |Δ log p| between engine and learner. In bfloat16 a logit between 2 and 4 is rounded to a multiple of 2^-6 =
0.016, and each of the two rounds dozens of intermediate results on its way there, in an order of its own;
0.04 was seen."""
STALE = 10
"""Stale weights are at least so many bounds away: no rounding explains that."""


class Engines:
    """Starts one worker's engine after the other in one process: half of a start is its imports."""

    async def start(self, options: EngineOptions) -> None:
        self._worker = RolloutWorker("rollout-0", options)
        await self._worker.start()

    async def stop(self) -> list[str]:
        """The names of this process' children afterwards."""
        await self._worker.shut_down()
        return [child.name() for child in psutil.Process().children()]

    async def probe_gap(self, publication: Publication) -> float:
        return await self._worker._probe_gap(publication)

    async def reload_as_vllm_does(self, model: Path) -> None:
        """Without our `WeightReceiver`."""
        await self._worker._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(model)})

    async def pull_weights(self, publication: Publication) -> float:
        return await self._worker.pull_weights(publication)

    async def generate(self, prompt: Prompt) -> Group:
        await self._worker.submit([prompt])
        sampled: dict[int, Response] = {}
        while len(sampled) < prompt.sampling.responses:
            sampled |= {one.index: one.response for one in await self._worker.collect(max_wait_s=60)}
        return Group(prompt, tuple(sampled[index] for index in sorted(sampled)), "rollout-0")


@pytest.fixture(scope="module")
def engine_process(local_ray: None) -> ray.actor.ActorHandle:
    return actor(Engines).remote()


@pytest.fixture
def engines(engine_process: ray.actor.ActorHandle) -> Iterator[ray.actor.ActorHandle]:
    yield engine_process
    ray.get(engine_process.stop.remote())  # once more does no harm


def actor(cls: type) -> ray.actor.ActorClass:
    return ray.remote(cls).options(num_cpus=0.5, runtime_env={"env_vars": cpu_environment(1, on_gpu=False)})


def save_model(directory: Path, *, tied: bool, seed: int) -> Path:
    """A Llama of random weights, so large that its predictions are far from uniform."""
    tokenizer = character_tokenizer(COMPACT_CHARACTERS, ANSWER_TAGS, MAX_TOKENS)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=MAX_TOKENS,
        initializer_range=0.125,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def random_tokens(seed: int) -> tuple[int, ...]:
    """As long as two blocks of vLLM's prefix cache, and a bit."""
    return tuple(np.random.default_rng(seed).integers(3, 20, size=300).tolist())


def engine_options(model: Path, dtype: str) -> EngineOptions:
    return EngineOptions(
        run_id=uuid.uuid4().hex,
        model=str(model),
        dtype=dtype,
        max_context_tokens=MAX_TOKENS,
        max_sequences=8,
        tensor_parallel=1,
        kv_cache_gib=0.125,
        gpu_memory_share=0.5,
        on_gpu=False,
    )


@asynccontextmanager
async def learner(model: Path, dtype: str, **settings: Any) -> AsyncIterator[LearnerGroup]:
    """By default one step of Adam moves most weights by about as much as they are."""
    probes = (random_tokens(1), random_tokens(2))
    config = LearnerConfig.model_validate({"learning_rate": 0.1} | settings)
    options = LearnerOptions(str(model), dtype, 1.0, 0, config, ObjectiveConfig(), probes, 1)
    rank = actor(LearnerRank).remote(0, options)
    try:
        yield LearnerGroup([rank], options)
    finally:
        ray.kill(rank)


def batch() -> WeighedBatch:
    return WeighedBatch(
        rows=tuple(
            Row(
                prompt_token_ids=np.array(random_tokens(seed)[:20]),
                response_token_ids=np.array(random_tokens(seed)[20:40]),
                sampler_logprobs=np.full(20, -3.0, dtype=np.float32),
                advantage=1.0,
                scale=1 / 80,
            )
            for seed in range(4)
        )
    )


def sampling_gap(group: Group, model: Path, dtype: str) -> float:
    """The largest |Δ log p| between what the engine says of its own responses and `model` in transformers."""
    policy = Policy(AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)))
    prompt = group.prompt.token_ids
    return max(
        np.abs(
            sequence_logprobs(policy, [*prompt, *response.token_ids], torch.device("cpu"))[len(prompt) - 1 :]
            - response.logprobs
        ).max()
        for response in group.responses
    )


@pytest.mark.timeout(400)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
async def test_what_was_published_is_served(
    engines: ray.actor.ActorHandle, tmp_path: Path, tied: bool, dtype: str
) -> None:
    """First another model's weights, which a prompt in the prefix cache is answered with too; then those of a step."""
    loaded = save_model(tmp_path / "loaded", tied=tied, seed=1)
    learned = save_model(tmp_path / "learned", tied=tied, seed=2)
    prompt = Prompt("train/0/0", "", random_tokens(3), None, Sampling(4, 1.0, 24, seed=None))
    options = engine_options(loaded, dtype)
    near, far = BOUNDS[dtype], STALE * BOUNDS[dtype]

    async with learner(learned, dtype) as group:
        await asyncio.gather(group.start(), engines.start.remote(options))
        await engines.generate.remote(prompt)
        first = await group.publish(version=1)
        assert await engines.probe_gap.remote(first) > far, "else stale weights would not be noticed here"
        if tied:
            await engines.reload_as_vllm_does.remote(learned)
            assert await engines.probe_gap.remote(first) > far, "vLLM needs no `_repack_tied_head` any more"
        assert await engines.pull_weights.remote(first) < near
        answer = await engines.generate.remote(prompt)
        assert sampling_gap(answer, learned, dtype) < near
        assert {(response.min_version, response.max_version) for response in answer.responses} == {(1, 1)}

        await group.learn([batch()])
        second = await group.publish(version=2)
        assert await engines.probe_gap.remote(second) > far
        assert await engines.pull_weights.remote(second) < near

    assert not [name for name in await engines.stop.remote() if "EngineCore" in name]
    assert not list(Path("/dev/shm").glob(f"*{options.run_id}*")), "the weight files go with the last worker"


def write_out_tied_head(file: Path) -> None:
    """As in some models on the hub."""
    weights = load_file(file)
    save_file(
        weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, file, {"format": "pt"}
    )


@pytest.mark.timeout(400)
async def test_adapters_travel_alone_and_are_served_merged(
    engines: ray.actor.ActorHandle, tmp_path: Path
) -> None:
    """The worker adds them to what it loaded: every version anew, and not to the version before."""
    base = save_model(tmp_path / "base", tied=True, seed=1)
    write_out_tied_head(base / "model.safetensors")
    prompt = Prompt("train/0/0", "", random_tokens(3), None, Sampling(4, 1.0, 24, seed=None))
    near, far = BOUNDS["float32"], STALE * BOUNDS["float32"]

    async with learner(base, "float32", lora_rank=4, learning_rate=0.01) as group:
        await asyncio.gather(group.start(), engines.start.remote(engine_options(base, "float32")))
        before = await group.publish(version=1)
        assert await engines.pull_weights.remote(before) < near
        for version in (2, 3):
            await group.learn([batch()])
            publication = await group.publish(version)
            assert await engines.probe_gap.remote(publication) > far, "else old weights would not be noticed"
            assert await engines.pull_weights.remote(publication) < near
            assert len(await publication.weights) < (base / "model.safetensors").stat().st_size / 4
        answer = await engines.generate.remote(prompt)
        await group.export(tmp_path / "exported")
    assert sampling_gap(answer, tmp_path / "exported", "float32") < near
