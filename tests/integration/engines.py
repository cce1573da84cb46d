"""Helpers for tests of real engines: a worker in an actor, models with random weights, and the log-probabilities that
transformers computes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from cluster.core.actor_options import EngineOptions
from cluster.core.config import OnNewWeights
from cluster.core.types import Group, LogprobGap, PolicyVersion, Prompt, Response, Sampled
from cluster.core.weight_transport import WEIGHT_TRANSPORTS
from cluster.runtime.placement import cpu_environment
from learner.model.policy import Policy, sequence_logprobs
from learner.model.supervised import character_tokenizer
from reward.tasks.countdown.starter import ANSWER_TAGS, COMPACT_CHARACTERS
from rollout.engine.response_clock import ResponseClock
from rollout.engine.worker import RolloutWorker

MAX_TOKENS = 512


def actor(cls: type) -> ray.actor.ActorClass:
    return ray.remote(cls).options(num_cpus=0.5, runtime_env={"env_vars": cpu_environment(1, on_gpu=False)})


class Engines:
    """Starts the engines of several workers one after the other in one process, because imports are half of a start."""

    async def start(self, options: EngineOptions) -> None:
        self._worker = RolloutWorker("rollout-0", options)
        await self._worker.start()

    async def stop(self) -> list[str]:
        """Stop the engine. Return the names of the remaining child processes."""
        await self._worker.shut_down()
        return [child.name() for child in psutil.Process().children()]

    def use(self, on_new_weights: OnNewWeights) -> None:
        self._worker._options = replace(self._worker._options, on_new_weights=on_new_weights)

    async def truncate_after(self, timeout_s: float) -> None:
        self._worker._clock = ResponseClock(timeout_s)
        self._worker._truncating = asyncio.create_task(self._worker._truncate_overdue(self._worker._clock))

    async def probe_gap(self, version: PolicyVersion) -> float:
        return (await self._worker._probe_gap(version)).largest

    async def reload_as_vllm_does(self, model: Path) -> None:
        """Load weights with vLLM's own method, without `EngineExtension`."""
        await self._worker._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(model)})

    async def weights_digest(self) -> str | None:
        return await self._worker.weights_digest()

    async def update_weights(self, version: PolicyVersion, route: Any = None) -> LogprobGap:
        return await self._worker.update_weights(version, route)

    async def sleep(self) -> bool:
        """Return True if vLLM reports that the engine sleeps."""
        await self._worker.sleep()
        return await self._worker._engine.is_sleeping()

    async def submit(self, prompts: Sequence[Prompt]) -> None:
        await self._worker.submit(prompts)

    async def collect(self, at_least: int) -> list[Sampled]:
        sampled: list[Sampled] = []
        while len(sampled) < at_least:
            sampled += await self._worker.collect(max_wait_s=60)
        return sampled

    async def generate(self, prompt: Prompt) -> Group:
        await self.submit([prompt])
        sampled = sorted(await self.collect(prompt.sampling.responses), key=lambda one: one.index)
        return Group(prompt, tuple(one.response for one in sampled), "rollout-0")


def save_model(directory: Path, *, tied: bool, seed: int) -> Path:
    """Write a Llama with random weights, which are so large that its predictions are far from uniform."""
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


def random_tokens(seed: int, length: int = 300) -> tuple[int, ...]:
    """Return random tokens, by default slightly more than two blocks of vLLM's prefix cache."""
    return tuple(np.random.default_rng(seed).integers(3, 20, size=length).tolist())


def engine_options(
    model: Path, dtype: str = "float32", max_sequences: int = 8, transport: str = "pull"
) -> EngineOptions:
    return EngineOptions(
        run_id=uuid.uuid4().hex,
        model=str(model),
        dtype=dtype,
        max_context_tokens=MAX_TOKENS,
        max_sequences=max_sequences,
        tensor_parallel_size=1,
        kv_cache_gib=0.125,
        gpu_memory_utilization=0.5,
        on_gpu=False,
        transport=WEIGHT_TRANSPORTS[transport],
    )


def load_policy(model: Path, dtype: str = "float32") -> Policy:
    return Policy(AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)))


def logprobs_of(policy: Policy, tokens: Sequence[int]) -> np.ndarray:
    """Return the log-probabilities of tokens[1:] in transformers, float32 [T - 1]."""
    return sequence_logprobs(policy, tokens, torch.device("cpu"))


def sampling_gap(group: Group, policy: Policy) -> float:
    """Return the largest |Δ log p| between the engine's own responses and `policy` in transformers."""
    return max(np.abs(gaps).max() for gaps in sampling_gaps(group.prompt, group.responses, policy))


def sampling_gaps(prompt: Prompt, responses: Iterable[Response], policy: Policy) -> list[np.ndarray]:
    """Return |Δ log p| of each token of each response."""
    return [
        np.abs(
            logprobs_of(policy, [*prompt.token_ids, *response.token_ids])[len(prompt.token_ids) - 1 :]
            - response.logprobs
        )
        for response in responses
    ]
