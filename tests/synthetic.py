"""A fleet without engines for tests of the controller. Its responses are synthetic; its accounting is real."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import BaseModel

from cluster.configuration.example_prompts import Rendered, SolvedExamples
from cluster.core.config import RunConfig
from cluster.core.types import Group, PolicyVersion, Prompt, Response, Sampled, ScoredGroup, Split, Verdict
from cluster.training.examples import ExamplePrompts
from cluster.training.informative import prompt_source
from cluster.training.prompts import PromptSource, TokenizedProblem, sampling_seed, training_sampling
from reward.tasks.countdown.puzzles import Puzzle
from rollout.engine.tokenizer import EncodedPrompt
from rollout.fleet.buffer import WorkBuffer
from rollout.fleet.scheduler import Scheduler
from rollout.fleet.state import FleetState
from tests.builders import make_response, make_verdict

WORKERS = ("rollout-0", "rollout-1")
PROBLEM = Puzzle((1, 2, 3), 6)
"""A problem for evaluations, which report its difficulty. No response solves it."""


class SyntheticFleet:
    """A replacement of `RolloutFleet`. Its two workers lease prompts, deliver responses and lose their leases, in an
    order that `chance` decides.

    A response depends only on its seed, or on `chance` if it has no seed. `tick` is called before each
    move of a worker.
    """

    def __init__(self, chance: random.Random, tick: Callable[[], None] = lambda: None) -> None:
        self._chance = chance
        self._tick = tick
        self._scheduler = Scheduler()
        self._undelivered: dict[str, tuple[str, int, int, list[tuple[Response, Verdict]]]] = {}
        """For each leased prompt: its worker, the index of its first response in the group, the number of delivered
        responses, and all responses that it asks for."""
        self.state = FleetState(len(WORKERS), max_consecutive_failures=0)

    @property
    def sampled_tokens(self) -> int:
        return self._scheduler.sampled_tokens

    async def publish(self, version: PolicyVersion) -> None:
        self.state.published(version.version)

    async def rest(self) -> None:
        """Do nothing: there are no engines that could sleep."""

    def feed(self, buffer: WorkBuffer) -> None:
        self._scheduler.feed(buffer)

    def adapt_size(self, *, waited_s: float, step_s: float) -> None:
        """Do nothing: the size is fixed."""

    def take_probe_gap(self) -> float:
        return 0.0

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._tick()
            self._move()

    async def sample(self, prompts: Sequence[Prompt]) -> list[ScoredGroup]:
        self._tick()
        return [
            ScoredGroup(Group(prompt, responses, WORKERS[0]), verdicts)
            for prompt in prompts
            for responses, verdicts in [zip(*self._answers(prompt), strict=True)]
        ]

    def _move(self) -> None:
        worker = self._chance.choice(WORKERS)
        move = self._chance.random()
        if move < 0.05:
            for prompt_id in self._scheduler.return_leases(worker):
                del self._undelivered[prompt_id]
        elif move < 0.4:
            assert self.state.current_version is not None, "nothing is sampled before weights are published"
            limit = self._chance.randint(1, 3)
            for prompt in self._scheduler.lease(worker, limit, self.state.current_version):
                self._undelivered[prompt.id] = (worker, prompt.sampling.first, 0, self._answers(prompt))
        elif self._undelivered:
            self._deliver(self._chance.choice(list(self._undelivered)))

    def _deliver(self, prompt_id: str) -> None:
        """Deliver the next response to a prompt."""
        worker, first, index, answers = self._undelivered.pop(prompt_id)
        response, verdict = answers[index]
        self._scheduler.deliver(worker, [Sampled(prompt_id, first + index, response)], [verdict])
        if index + 1 < len(answers):
            self._undelivered[prompt_id] = (worker, first, index + 1, answers)

    def _answers(self, prompt: Prompt) -> list[tuple[Response, Verdict]]:
        return [self._answer(prompt, index) for index in prompt.sampling.indexes]

    def _answer(self, prompt: Prompt, index: int) -> tuple[Response, Verdict]:
        version, seed = self.state.current_version, prompt.sampling.seed
        assert version is not None
        made_up = np.random.default_rng(self._chance.getrandbits(32) if seed is None else seed + index)
        return (
            replace(
                make_response(made_up.integers(3, 20, size=made_up.integers(1, 12)), version=version),
                prefix=prompt.prefix(index),
            ),
            make_verdict(float(made_up.integers(2))),
        )


def synthetic_examples(config: RunConfig, rows: int) -> ExamplePrompts | None:
    """Return the examples of a run with the prompts of `synthetic_source`, if it has any. Their tokens are the numbers
    of the characters."""
    if config.rescue.examples == 0:
        return None
    task = SyntheticTask()
    pool = SolvedExamples(task, task.solution, range(rows), config.rescue.examples, config.seed)

    def encode(rendered: Rendered) -> EncodedPrompt:
        assert isinstance(rendered, str)
        return EncodedPrompt(rendered, tuple(map(ord, rendered)))

    return ExamplePrompts(config, pool, encode)


class SyntheticTask:
    """Asks for the square of a row's number."""

    Options = BaseModel

    def __init__(self, options: Any = None) -> None:
        """Take no options."""

    def problems(self, split: Split) -> Sequence[int]:
        return range(100)

    def render(self, problem: int) -> str:
        return f"square of {problem}: "

    def solution(self, problem: int) -> str | None:
        return f"it is {problem**2}"


def synthetic_source(config: Any, rows: int) -> PromptSource:
    """Return a source of prompts with a few arbitrary tokens each."""
    problems = [
        TokenizedProblem(
            PROBLEM, EncodedPrompt(f"question {row}", tuple(3 + (row * k) % 17 for k in range(1, 6)))
        )
        for row in range(rows)
    ]
    return prompt_source(
        config.task.selection, problems, config.seed, lambda prompt_id: training_sampling(config, prompt_id)
    )


def expected_prompts(config: Any, rows: int, count: int) -> list[tuple[str, int]]:
    """Return the ids and seeds of the first `count` prompts of an uninterrupted run."""
    source = synthetic_source(config, rows)
    ids = [source.next().id for _ in range(count)]
    return [(prompt_id, sampling_seed(config.seed, prompt_id)) for prompt_id in ids]
