"""A fleet without engines, for tests of the controller: what it answers is made up, the accounting is real."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cluster.contracts import Prompt, Publication, ScoredGroup
from cluster.prompt_source import PromptSource, Question, sampling_seed
from cluster.questions import training_sampling
from rollout.fleet_state import FleetState
from rollout.prompt_encoder import EncodedPrompt
from rollout.work_buffer import WorkBuffer
from tests.builders import make_group, make_response

WORKERS = ("rollout-0", "rollout-1")


class SyntheticFleet:
    """Stands in for `RolloutFleet`. Two workers lease, finish and lose prompts in an order that `chance` decides.

    A prompt's responses depend on its seed alone, or, where it has none, on `chance`. `tick` is called before each of
    their moves.
    """

    def __init__(self, chance: random.Random, tick: Callable[[], None] = lambda: None) -> None:
        self._chance = chance
        self._tick = tick
        self._buffers: list[WorkBuffer] = []
        self._leased: dict[str, tuple[Prompt, str]] = {}
        self.state = FleetState(list(WORKERS), restarts_per_worker=0)
        self.sampled_tokens = 0

    def publish(self, publication: Publication) -> None:
        self.state.published(publication.version)

    def feed(self, buffer: WorkBuffer) -> None:
        self._buffers = [buffer]

    def take_probe_gap(self) -> float:
        return 0.0

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._tick()
            self._move(self._buffers[0])

    async def sample(self, prompts: Sequence[Prompt]) -> list[ScoredGroup]:
        self._tick()
        return [self._answer(prompt, WORKERS[0]) for prompt in prompts]

    def _move(self, buffer: WorkBuffer) -> None:
        worker = self._chance.choice(WORKERS)
        move = self._chance.random()
        if move < 0.1:
            for prompt_id in buffer.return_leases(worker):
                del self._leased[prompt_id]
        elif move < 0.5:
            for prompt in buffer.lease(worker, self._chance.randint(1, 3)):
                self._leased[prompt.id] = (prompt, worker)
        elif self._leased:
            prompt, holder = self._leased.pop(self._chance.choice(list(self._leased)))
            assert buffer.complete(self._answer(prompt, holder))

    def _answer(self, prompt: Prompt, worker: str) -> ScoredGroup:
        assert self.state.current_version is not None, "nothing is sampled before weights are published"
        seed = prompt.sampling.seed
        made_up = np.random.default_rng(self._chance.getrandbits(32) if seed is None else seed)
        responses = [
            make_response(
                made_up.integers(3, 20, size=made_up.integers(1, 12)), version=self.state.current_version
            )
            for _ in range(prompt.sampling.responses)
        ]
        return make_group([float(made_up.integers(2)) for _ in responses], responses, prompt, worker)


def synthetic_source(config: Any, rows: int) -> PromptSource:
    """Prompts of a few tokens that no task made."""
    questions = [
        Question(
            f"problem {row}", EncodedPrompt(f"question {row}", tuple(3 + (row * k) % 17 for k in range(1, 6)))
        )
        for row in range(rows)
    ]
    return PromptSource(questions, config.seed, lambda prompt_id: training_sampling(config, prompt_id))


def expected_prompts(config: Any, rows: int, count: int) -> list[tuple[str, int]]:
    """The first `count` prompts of a run that is never cut, with their seeds."""
    source = synthetic_source(config, rows)
    ids = [source.next().id for _ in range(count)]
    return [(prompt_id, sampling_seed(config.seed, prompt_id)) for prompt_id in ids]
