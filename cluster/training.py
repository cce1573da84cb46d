"""`launch.py train`: sets the stage for the controller's loop, and clears it away afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import ray

from cluster.checkpoints import CheckpointStore
from cluster.config import RunConfig
from cluster.contracts import Prompt, Sampling
from cluster.controller import Controller, LogprobGapError
from cluster.fleet import FleetLostError, RolloutFleet, first_cause
from cluster.models import prepare_model
from cluster.placement import PlacementError, Reservation, bundle, connect, cpu_environment
from cluster.prompt_source import PromptSource, Question, ask, sampling_seed
from cluster.run_directory import RunDirectory
from cluster.tracking import RunConsole, Tracker
from learner.group import LearnerGroup
from learner.rank import LearnerOptions, LearnerRank
from reward.scoring import RewardActor, RewardPool
from reward.tasks import build_task
from rollout.prompt_encoder import PromptEncoder
from rollout.worker import EngineOptions


@dataclass(frozen=True, slots=True)
class Questions:
    """Everything that will be asked, tokenised."""

    train: Sequence[Question]
    held_out: Sequence[Question]


class UnusablePromptError(ValueError):
    """A prompt does not fit into the model's context."""


TRAINING_ERRORS = (
    PlacementError,
    FleetLostError,
    LogprobGapError,
    UnusablePromptError,
    TimeoutError,
    ConnectionError,
    OSError,
    ray.exceptions.RayError,
)
"""What may stop a run through no fault of this program, and says by itself what happened."""


def train(config: RunConfig, console: RunConsole) -> dict[str, Any]:
    """Run the training that `config` describes and return its summary. A run that was cut short is resumed.

    Raises:
        PlacementError, FleetLostError, LogprobGapError, UnusablePromptError: what their names say.
    """
    started = time.monotonic()
    run_directory = RunDirectory(config.run_directory)
    checkpoints = CheckpointStore(run_directory.checkpoints, config.checkpoint.keep)
    newest = checkpoints.newest()
    seen_before = run_directory.config_file.exists()
    with Tracker(
        config,
        run_directory,
        console,
        resume_step=(newest[1].step if newest else -1) if seen_before else None,
    ) as tracker:
        if seen_before:
            _announce_resumption(config, run_directory, tracker, newest[1].step if newest else None)
        run_directory.write_config(config)
        console.stage("starting Ray")
        place = connect(config.cluster)
        try:
            tracker.event(f"on {place}")
            model = _prepare_in_cluster(config, console)
            console.stage("reading the prompts")
            questions = _encode(config, model)
            run = _Run(config, run_directory, checkpoints, tracker, console, model, questions)
            try:
                controller = asyncio.run(run.main())
            except BaseExceptionGroup as group:
                raise first_cause(group) from group
        finally:
            ray.shutdown()
        summary = _summary(config, run_directory, controller, time.monotonic() - started)
        tracker.finish(summary)
    return summary


def set_aside(config: RunConfig) -> Path | None:
    """Move an earlier run of this name out of the way. Returns where it is now, or None if there was none."""
    path = config.run_directory
    if not path.exists():
        return None
    aside = path.with_name(f"{path.name}.{datetime.now():%Y%m%d-%H%M%S}")
    path.rename(aside)
    return aside


def _announce_resumption(
    config: RunConfig, run_directory: RunDirectory, tracker: Tracker, step: int | None
) -> None:
    where = (
        f"resuming at step {step}" if step is not None else "no checkpoint yet: starting from the beginning"
    )
    tracker.event(f"{run_directory.path} holds an unfinished run; {where}")
    for difference in run_directory.differences(config):
        tracker.event(f"changed since: {difference}")


def _prepare_in_cluster(config: RunConfig, console: RunConsole) -> Path:
    """Build, convert or download the model in a process of its own, so that the driver never loads torch."""

    @ray.remote(num_cpus=1, num_returns="streaming", max_retries=0)
    def prepare(config: RunConfig) -> Iterator[str | Path]:
        yield from _progress_then_result(config)

    for reference in prepare.remote(config):
        news = ray.get(reference)
        if isinstance(news, Path):
            return news
        console.stage(news)
    raise RuntimeError("preparing the model ended without a model")


def _progress_then_result(config: RunConfig) -> Iterator[str | Path]:
    """`prepare_model` as a stream: its lines of progress, then the directory."""
    from queue import SimpleQueue
    from threading import Thread

    news: SimpleQueue[str | Path | BaseException] = SimpleQueue()

    def work() -> None:
        try:
            news.put(prepare_model(config, news.put))
        except BaseException as error:
            news.put(error)

    Thread(target=work, daemon=True).start()
    while True:
        item = news.get()
        if isinstance(item, BaseException):
            raise item
        yield item
        if isinstance(item, Path):
            return


def _encode(config: RunConfig, model: Path) -> Questions:
    task = build_task(config.task.name, config.task.options)
    encoder = PromptEncoder(model)
    limit = config.model.max_context_tokens - config.rollout.max_response_tokens

    def questions(problems: Sequence[Any]) -> list[Question]:
        encoded = [Question(problem, encoder.encode(task.render(problem))) for problem in problems]
        longest = max(len(question.encoded.token_ids) for question in encoded)
        if longest > limit:
            raise UnusablePromptError(
                f"the longest prompt has {longest} tokens; with rollout.max_response_tokens "
                f"{config.rollout.max_response_tokens} it does not fit into model.max_context_tokens "
                f"{config.model.max_context_tokens}; raise the latter to at least "
                f"{longest + config.rollout.max_response_tokens}"
            )
        return encoded

    return Questions(questions(task.problems("train")), questions(task.problems("held_out")))


def _held_out_prompts(config: RunConfig, questions: Questions) -> list[Prompt]:
    """The same prompts and seeds at every evaluation."""
    evaluation = config.evaluation
    return [
        ask(
            f"eval/{row}",
            question,
            Sampling(
                evaluation.responses_per_prompt,
                config.rollout.temperature,
                config.rollout.max_response_tokens,
                _seed(config, f"eval/{row}"),
            ),
        )
        for row, question in enumerate(questions.held_out[: evaluation.prompts])
    ]


def _seed(config: RunConfig, prompt_id: str) -> int | None:
    """On CPU vLLM cannot go on with a seeded response after its weights changed, so seeds are for on-policy runs."""
    return sampling_seed(config.seed, prompt_id) if config.rollout.max_staleness == 0 else None


@dataclass(frozen=True)
class _Run:
    """One execution of a run, from placing the actors to the exported model."""

    config: RunConfig
    run_directory: RunDirectory
    checkpoints: CheckpointStore
    tracker: Tracker
    console: RunConsole
    model: Path
    questions: Questions

    async def main(self) -> Controller:
        config = self.config
        async with (
            self._learner() as learner,
            self._rewards() as rewards,
            asyncio.TaskGroup() as background,
        ):
            fleet = RolloutFleet(
                config, self._engine_options(), self.run_directory, rewards, self.tracker.event
            )
            fleet.start(background)
            try:
                self.console.stage(
                    f"starting {config.rollout.workers} vLLM workers and {config.learner.ranks} DeepSpeed rank(s)"
                )
                await learner.start()
                await fleet.wait_until(lambda: fleet.state.started_workers > 0)
                source = PromptSource(self.questions.train, config.seed, self._sampling)
                held_out = _held_out_prompts(config, self.questions)
                self.console.stage("training")
                controller = Controller(
                    config, source, held_out, fleet, learner, self.checkpoints, self.tracker
                )
                await controller.run()
                self.console.stage("exporting the model")
                await learner.export(self.run_directory.final_model)
            finally:
                await fleet.stop()
        return controller

    def _sampling(self, prompt_id: str) -> Sampling:
        rollout = self.config.rollout
        return Sampling(
            rollout.responses_per_prompt,
            rollout.temperature,
            rollout.max_response_tokens,
            _seed(self.config, prompt_id),
        )

    def _engine_options(self) -> EngineOptions:
        rollout = self.config.rollout
        return EngineOptions(
            run_id=uuid.uuid4().hex,  # of this execution: files that an earlier one left behind are not ours
            model=str(self.model),
            dtype=self.config.model.dtype,
            max_context_tokens=self.config.model.max_context_tokens,
            max_sequences=rollout.max_sequences,
            tensor_parallel=rollout.tensor_parallel,
            kv_cache_gib=rollout.kv_cache_gib,
            gpu_memory_share=rollout.gpu_memory_share,
            on_gpu=rollout.gpus_per_worker > 0,
        )

    @contextlib.asynccontextmanager
    async def _learner(self) -> AsyncIterator[LearnerGroup]:
        config = self.config.learner
        options = LearnerOptions(
            model=str(self.model),
            dtype=self.config.model.dtype,
            temperature=self.config.rollout.temperature,
            seed=self.config.seed,
            learner=config,
            objective=self.config.objective,
            probe_tokens=tuple(question.encoded.token_ids for question in self.questions.train[:2]),
        )
        bundles = [bundle(config.cpus_per_rank, config.gpus_per_rank)] * config.ranks
        async with Reservation("the learner", bundles, self.config.cluster.placement_timeout_s) as place:
            ranks = [
                place.actor(
                    LearnerRank,
                    rank,
                    options,
                    bundle=rank,
                    log_file=self.run_directory.log_file(f"learner-{rank}"),
                    env=cpu_environment(config.threads_per_rank, on_gpu=config.gpus_per_rank > 0),
                )
                for rank in range(config.ranks)
            ]
            yield LearnerGroup(ranks, options)

    @contextlib.asynccontextmanager
    async def _rewards(self) -> AsyncIterator[RewardPool]:
        config = self.config.reward
        bundles = [bundle(config.cpus_per_worker, 0)] * config.workers
        async with Reservation(
            "the reward actors", bundles, self.config.cluster.placement_timeout_s
        ) as place:
            actors = [
                place.actor(
                    RewardActor,
                    self.config.task.name,
                    self.config.task.options,
                    bundle=index,
                    log_file=self.run_directory.log_file(f"reward-{index}"),
                    env={},
                    max_restarts=-1,
                    max_task_retries=3,
                )
                for index in range(config.workers)
            ]
            yield RewardPool(actors, config.timeout_s)


def _summary(
    config: RunConfig, run_directory: RunDirectory, controller: Controller, wall_time_s: float
) -> dict[str, Any]:
    steps = sorted(controller.pass_at_1)
    return {
        "pass_at_1_before": controller.pass_at_1[steps[0]],
        "pass_at_1_after": controller.pass_at_1[steps[-1]],
        "steps": controller.step,
        "training_time_s": round(controller.elapsed_s, 1),
        "wall_time_s": round(wall_time_s, 1),
        "run_directory": str(run_directory.path),
        "final_model": str(run_directory.final_model),
    }
