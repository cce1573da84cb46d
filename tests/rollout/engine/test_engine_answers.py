"""Whatever an engine answers is a valid response, or an error of its request that other answers make good."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster.core.actor_options import EngineOptions
from cluster.core.logprob_gap import MAX_MISSING_LOGPROBS_FRACTION
from cluster.core.types import Prompt, Response, Sampling
from rollout.engine import worker as worker_module
from rollout.engine.answers import EngineAnswerError, Limits, only_completion, response_of
from rollout.engine.worker import RolloutWorker
from rollout.weights import pull
from rollout.weights.node_files import NodeWeightFiles

OPTIONS = EngineOptions("run", "model", "float32", 64, 8, 1, 0.1, 0.9, False)
CASES = 4000
VOCABULARY, VERSION, LIMIT = 50, 3, 8
ODD_NUMBERS = (math.nan, math.inf, -math.inf, 1e300, -1e300, 5.0, "x", None, 10**400, -0.0, True)
ODD_TOKENS = (-1, VOCABULARY, 2**63, -(2**70), 1.5, math.nan, "a", None, True)
ODD_THINGS = (None, 7, "text", b"bytes", [], {}, math.nan, object())
TEXTS = ("fine", "half \ud800", "\udfff", "\0", "", None, 5, b"\xff")


class Tokenizer:
    """Says anything, and sometimes nothing."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def decode(self, token_ids: list[int], skip_special_tokens: bool) -> Any:
        if self.chance.random() < 0.1:
            raise KeyError(token_ids[0])
        return self.chance.choice(TEXTS)


def good(chance: random.Random) -> SimpleNamespace:
    """Return the finished output of a request."""
    tokens = [chance.randrange(VOCABULARY) for _ in range(chance.randint(1, LIMIT))]
    cut = chance.randint(0, len(tokens))  # at an end, one of the spans is empty
    spans = [SimpleNamespace(version="1", start=0, end=cut)]
    spans += [SimpleNamespace(version="3", start=cut, end=len(tokens))]
    completion = SimpleNamespace(
        token_ids=tokens,
        logprobs=SimpleNamespace(logprobs=[-chance.random() for _ in tokens], token_ids=list(tokens)),
        weight_versions=spans,
        finish_reason=chance.choice(["stop", "length"]),
    )
    return SimpleNamespace(finished=True, outputs=[completion])


def spoiled(chance: random.Random, output: SimpleNamespace) -> Any:
    """Return an answer with one thing that no engine should say."""
    (completion,) = output.outputs
    tokens, logged, spans = completion.token_ids, completion.logprobs, completion.weight_versions
    place = chance.randrange(len(tokens))
    span = chance.choice(spans)

    def replaced(values: list[Any], new: Any) -> None:
        values[place] = new

    deeds: tuple[Callable[[], Any], ...] = (
        lambda: setattr(completion, chance.choice(list(vars(completion))), chance.choice(ODD_THINGS)),
        lambda: delattr(completion, chance.choice(list(vars(completion)))),
        lambda: replaced(logged.logprobs, chance.choice(ODD_NUMBERS)),
        lambda: replaced(tokens, chance.choice(ODD_TOKENS)),
        lambda: [replaced(each, chance.choice(ODD_TOKENS)) for each in (tokens, logged.token_ids)],
        lambda: logged.token_ids.append(1),
        lambda: logged.logprobs.pop(),
        lambda: logged.logprobs.append(-1.0),
        lambda: setattr(logged, "logprobs", chance.choice(ODD_THINGS)),
        lambda: setattr(logged, "logprobs", [logged.logprobs]),
        lambda: [each.clear() for each in (tokens, logged.token_ids, logged.logprobs)],
        lambda: [each.extend([1] * LIMIT) for each in (tokens, logged.token_ids, logged.logprobs)],
        lambda: tokens.pop(),
        lambda: setattr(span, chance.choice(["version", "start", "end"]), chance.choice(ODD_TOKENS)),
        lambda: setattr(span, "version", str(chance.choice([-1, VERSION + 1, 10**30]))),
        lambda: spans.reverse(),
        lambda: spans.extend(spans),
        lambda: setattr(completion, "finish_reason", chance.choice(["error", "repetition", "STOP", "", 0])),
        lambda: output.outputs.extend(output.outputs),
        lambda: output.outputs.clear(),
        lambda: setattr(output, "outputs", chance.choice(ODD_THINGS)),
        lambda: setattr(output, "finished", chance.choice([False, None])),
    )
    chance.choice(deeds)()
    return output if chance.random() > 0.01 else None


class Unreliable(RolloutWorker):
    """A worker whose engine answers nonsense with a probability."""

    def __init__(self, seed: int, nonsense: float) -> None:
        super().__init__("rollout-0", OPTIONS)
        self.chance = random.Random(seed)
        self.nonsense = nonsense
        self.asked: Counter[tuple[int, ...]] = Counter()
        self._version, self._vocabulary = VERSION, VOCABULARY
        self._engine = SimpleNamespace(get_tokenizer=lambda: Tokenizer(self.chance), errored=False)

    async def _sample(self, token_ids: Any, sampling: Sampling, seed: int | None, request_id: str) -> Any:
        self.asked[tuple(token_ids)] += 1
        output = good(self.chance)
        if self.chance.random() < self.nonsense:
            output = spoiled(self.chance, output)
        return only_completion(output)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, float], Unreliable]:
    monkeypatch.setattr(pull, "NodeWeightFiles", lambda run_id: NodeWeightFiles(run_id, tmp_path))
    return Unreliable


def assert_valid(response: Response) -> None:
    """Assert what the learner, the reward actors and the record rely on."""
    tokens = response.token_ids
    assert 1 <= len(tokens) <= LIMIT
    assert tokens.dtype == np.int64
    assert 0 <= tokens.min() <= tokens.max() < VOCABULARY
    assert response.logprobs.dtype == np.float32
    assert response.logprobs.shape == tokens.shape
    assert np.isnan(response.logprobs).sum() <= max(1, MAX_MISSING_LOGPROBS_FRACTION * len(tokens))
    assert not np.isinf(response.logprobs).any()
    assert response.finish_reason in ("stop", "length")
    assert 0 <= response.min_version <= response.max_version <= VERSION
    covered = [index for span in response.version_spans for index in range(span.start, span.end)]
    assert covered == list(range(len(tokens)))
    response.text.encode("utf-8")


async def sampled(worker: Unreliable, prompt: Prompt) -> list[Response]:
    await worker.submit([prompt])
    await asyncio.gather(*worker._sampling, return_exceptions=True)
    return [each.response for each in await worker.collect(1.0)]


async def test_whatever_an_engine_says_is_a_valid_response_or_an_error_of_its_request(
    made: Callable[[int, float], Unreliable],
) -> None:
    worker = made(0, 1.0)
    answers = Counter[str]()
    for number in range(CASES):
        try:
            response = await worker._answer(
                Prompt("p", "", (number,), None, Sampling(1, 1.0, LIMIT, None)), 0
            )
        except EngineAnswerError as error:
            answers[str(error)[:30]] += len(str(error).splitlines()) == 1
        else:
            assert_valid(response)
            answers["valid"] += 1
    assert len(answers) >= 8, "each refusal is reached"
    assert answers["valid"] >= 100


async def test_nonsense_is_asked_for_again_and_costs_no_response(
    made: Callable[[int, float], Unreliable],
) -> None:
    """The fourth part of all answers is nonsense, and some responses are asked for three times."""
    worker = made(1, 0.1)
    for number in range(300):
        responses = await sampled(worker, Prompt("p", "", (number,), None, Sampling(2, 1.0, LIMIT, None)))
        assert len(responses) == 2
        for response in responses:
            assert_valid(response)
    assert max(worker.asked.values()) > 2, "something was asked for again"


async def test_an_engine_that_says_only_nonsense_costs_its_process(
    made: Callable[[int, float], Unreliable], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor takes the error of `collect` as the loss of this process (tests/rollout/fleet)."""
    monkeypatch.setattr(
        "tests.rollout.engine.test_engine_answers.spoiled",
        lambda chance, output: SimpleNamespace(finished=True, outputs=[]),
    )
    worker = made(2, 1.0)
    with pytest.raises(EngineAnswerError, match="returned 0 outputs of a request for one"):
        await sampled(worker, Prompt("p", "", (1,), None, Sampling(1, 1.0, LIMIT, None)))
    assert worker.asked == {(1,): worker_module.ANSWER_ATTEMPTS}


async def test_a_long_response_may_miss_some_log_probabilities(
    made: Callable[[int, float], Unreliable],
) -> None:
    """They are NaN, which the loss leaves out, whatever the engine said there."""
    worker = made(3, 0.0)
    tokens = [1] * 200
    for odd in (math.nan, math.inf, -math.inf, 1e300, -1e300, 5.0):
        values = [odd, odd, *[-0.5] * 198]
        completion = SimpleNamespace(
            token_ids=tokens,
            logprobs=SimpleNamespace(logprobs=values, token_ids=tokens),
            weight_versions=[SimpleNamespace(version="0", start=0, end=200)],
            finish_reason="stop",
        )
        assert np.isnan(worker._to_response(completion, (), 200).logprobs).sum() == 2
        values[2] = odd
        with pytest.raises(EngineAnswerError, match="no usable log-probability for 3 of 200"):
            worker._to_response(completion, (), 200)


def test_one_token_without_a_logprob_is_left_out_and_does_not_cost_a_short_response() -> None:
    chance = random.Random(0)
    (completion,) = good(chance).outputs
    limits, tokenizer = Limits(LIMIT, VOCABULARY, VERSION), Tokenizer(chance)
    assert 2 <= len(completion.token_ids) < 100
    completion.logprobs.logprobs[0] = math.nan
    assert np.isnan(response_of(completion, (), limits, tokenizer).logprobs).sum() == 1
    completion.logprobs.logprobs[1] = math.inf
    with pytest.raises(EngineAnswerError, match="no usable log-probability for 2 of"):
        response_of(completion, (), limits, tokenizer)
