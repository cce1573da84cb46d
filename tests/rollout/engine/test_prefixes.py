"""A response that begins with a given prefix: the engine continues it, and the whole text is scored."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.actor_options import EngineOptions
from cluster.core.types import Prompt, Response, Sampling
from rollout.engine.worker import RolloutWorker
from rollout.weights import pull
from rollout.weights.node_files import NodeWeightFiles
from tests.builders import make_prompt

OPTIONS = EngineOptions("run", "model", "float32", 64, 8, 1, 0.1, 0.9, False)


class Letters:
    """Decodes token 1 as `a`, token 2 as `b` and so on."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(chr(96 + token_id) for token_id in token_ids)


class Continuing(RolloutWorker):
    """A worker whose engine samples tokens from 20 on until its limit, and records what it was asked."""

    def __init__(self) -> None:
        super().__init__("rollout-0", OPTIONS)
        self.asked: list[tuple[tuple[int, ...], Sampling, int | None]] = []
        self._version = 4
        self._engine = SimpleNamespace(get_tokenizer=Letters, errored=False)

    async def _sample(self, token_ids: Any, sampling: Sampling, seed: int | None, request_id: str) -> Any:
        self.asked.append((tuple(token_ids), sampling, seed))
        sampled = list(range(20, 20 + min(3, sampling.max_response_tokens)))
        return SimpleNamespace(
            token_ids=sampled,
            logprobs=SimpleNamespace(logprobs=[-0.5] * len(sampled), token_ids=sampled),
            weight_versions=[SimpleNamespace(version=4, start=0, end=len(sampled))],
            finish_reason="length",
        )


def responses_to(prompt: Prompt, directory: Path) -> tuple[Continuing, list[Response]]:
    async def sampled() -> tuple[Continuing, list[Response]]:
        worker = Continuing()
        await worker.submit([prompt])
        await asyncio.gather(*worker._sampling)
        assert worker._failure is None
        found = sorted(worker._sampled, key=lambda one: one.index)
        return worker, [one.response for one in found]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pull, "NodeWeightFiles", lambda run_id: NodeWeightFiles(run_id, directory))
        return asyncio.run(sampled())


PREFIXES = st.lists(st.lists(st.integers(1, 19), min_size=1, max_size=7).map(tuple), max_size=4).map(tuple)


@given(prefixes=PREFIXES)
def test_a_prefix_is_context_of_the_engine_and_part_of_the_text(
    prefixes: tuple[tuple[int, ...], ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    prompt = replace(make_prompt(), sampling=Sampling(4, 1.0, 8, seed=100), prefixes=prefixes)
    worker, responses = responses_to(prompt, tmp_path_factory.mktemp("node"))
    for index, response in enumerate(responses):
        prefix = prefixes[index] if index < len(prefixes) else ()
        (asked,) = [asked for asked in worker.asked if asked[2] == 100 + index]
        assert asked[0] == prompt.token_ids + prefix
        assert asked[1] == Sampling(4, 1.0, 8 - len(prefix), seed=100)
        assert response.prefix == prefix
        assert response.whole_length <= 8
        assert np.all(response.token_ids >= 20), "the prefix was not sampled"
        assert len(response.logprobs) == len(response.token_ids) == response.version_spans[-1].end
        assert response.text == Letters().decode([*prefix, *response.token_ids], True)
