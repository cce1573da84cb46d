"""Short constructors of prompts, responses, scored groups and tiny models for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cluster.core.types import (
    FinishReason,
    Group,
    Prompt,
    Response,
    Sampling,
    ScoredGroup,
    ScoringRequest,
    Verdict,
    VersionSpan,
)
from cluster.run_state.progress import Progress
from reward.service import RewardPool, score_in_order
from reward.task import Scorer


def make_prompt(id_: str = "train/0/0", token_ids: Sequence[int] = (5, 6, 7), problem: Any = None) -> Prompt:
    return Prompt(id_, "question", tuple(token_ids), problem, Sampling(2, 1.0, 16, seed=0))


def make_response(
    tokens: int | Sequence[int] = 3,
    logprobs: Sequence[float] | None = None,
    version: int = 0,
    finish_reason: FinishReason = "stop",
) -> Response:
    """Return a response. `tokens` is the number of its tokens, or their ids."""
    ids = np.arange(1, tokens + 1) if isinstance(tokens, int) else np.asarray(tokens)
    logged = np.full(len(ids), -1.0) if logprobs is None else np.asarray(logprobs)
    spans = (VersionSpan(version, 0, len(ids)),)
    return Response(ids.astype(np.int64), logged.astype(np.float32), "answer", finish_reason, spans)


def make_verdict(reward: float | None) -> Verdict:
    """Return a verdict. A reward of None means that the verifier failed."""
    if reward is None:
        return Verdict("error", 0.0, None, "the verifier failed")
    return Verdict("correct" if reward > 0 else "incorrect", reward, "answer", "")


def make_group(
    rewards: Sequence[float | None] = (1.0, 0.0),
    responses: Sequence[Response] | None = None,
    prompt: Prompt | None = None,
    worker: str = "rollout-0",
) -> ScoredGroup:
    """Return a group with one response per reward."""
    responses = [make_response() for _ in rewards] if responses is None else responses
    if prompt is None:
        prompt = make_prompt()
        prompt = replace(prompt, sampling=replace(prompt.sampling, responses=len(rewards)))
    group = Group(prompt, tuple(responses), worker)
    return ScoredGroup(group, tuple(make_verdict(reward) for reward in rewards))


def make_progress(step: int, **changes: Any) -> Progress:
    values: dict[str, Any] = {
        "step": step,
        "position": 0,
        "in_flight": (),
        "trained_prompts": 0,
        "first_pass_at_1": 0.1,
        "elapsed_s": 1.5 * step,
        "data": "fingerprint",
        "wandb_run_id": "abc123",
    }
    return Progress(**values | changes)


async def scored_by(scorer: Scorer, problem: Any, responses: Sequence[str]) -> list[Verdict]:
    """Return the verdicts on several responses to one problem."""
    return await score_in_order(scorer, [(problem, response) for response in responses])


async def all_verdicts(rewards: RewardPool, answers: Sequence[ScoringRequest]) -> list[Verdict]:
    """Return the verdicts of the pool in the order of the answers."""
    verdicts: dict[int, Verdict] = {}
    async for indexed in rewards.score(answers):
        verdicts.update(indexed)
    return [verdicts[index] for index in range(len(answers))]


def tiny_llama(vocabulary: int = 32) -> Any:
    """Return a random Llama in float64. It is always the same, and its predictions are far from uniform."""
    return tiny_model("llama", vocab_size=vocabulary)


def tiny_model(model_type: str, tied: bool = False, **settings: Any) -> Any:
    """Return a randomly initialized model of one of transformers' architectures, in float64.

    It is always the same. Its predictions are far from uniform and depend on all previous tokens. `settings` change its
    configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    known = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "initializer_range": 0.5,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **known | settings)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
