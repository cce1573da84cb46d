"""Short constructors for the tests of the rescue: settings, prompts of a row, and their scored groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cluster.core.config import RunConfig
from cluster.core.types import Prompt, Response, Sampling, ScoredGroup, VersionSpan
from tests.builders import make_group, make_response

RESPONSES, MAX_RESPONSE_TOKENS = 4, 12
ALL: dict[str, Any] = {
    "prefix_fraction": 0.5,
    "replay_max_age_steps": 3,
    "examples": 2,
    "examples_fade_steps": 4,
}
"""Settings with every method on."""


def rescue_config(seed: int = 3, **rescue: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "seed": seed,
            "rollout": {"responses_per_prompt": RESPONSES, "max_response_tokens": MAX_RESPONSE_TOKENS},
            "objective": {"importance_cap": 2.0},
            "rescue": rescue,
        }
    )


def prompt_of(row: int, epoch: int = 0) -> Prompt:
    sampling = Sampling(RESPONSES, 1.0, MAX_RESPONSE_TOKENS, seed=row << 12)
    return Prompt(f"train/{epoch}/{row}", f"row {row}", (5, 6, row), None, sampling)


def group_of(prompt: Prompt, rewards: Sequence[float | None], version: int = 0, seed: int = 0) -> ScoredGroup:
    """Return the group of a prompt: each response continues its prefix with random tokens, and has random
    log-probabilities."""
    rng = np.random.default_rng([seed, version, *map(ord, prompt.id)])
    responses = []
    for index in range(len(rewards)):
        prefix = prompt.prefix(index)
        size = int(rng.integers(1, MAX_RESPONSE_TOKENS - len(prefix) + 1))
        plain = make_response(rng.integers(20, 90, size=size), rng.normal(size=size).tolist())
        middle = int(rng.integers(0, size))
        spans = (VersionSpan(version, 0, middle), VersionSpan(version + 1, middle, size))
        responses.append(
            replace(plain, prefix=prefix, version_spans=spans[0 if middle else 1 :], text=f"räume {seed} 𝛼")
        )
    return make_group(rewards, responses, prompt)


def same_response(one: Response, other: Response) -> bool:
    """Tell whether two responses are equal, bit for bit."""
    arrays = [(one.token_ids, other.token_ids), (one.logprobs, other.logprobs)]
    empty = np.zeros(0)
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in arrays) and replace(
        one, token_ids=empty, logprobs=empty
    ) == replace(other, token_ids=empty, logprobs=empty)
