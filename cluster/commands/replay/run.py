"""Compute an update again: one process on the CPU, without Ray, with the parts of a learner rank."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cluster.commands.replay.findings import findings, unusable
from cluster.commands.replay.plan import ReplayPlan
from cluster.core.actor_options import LearnerOptions
from cluster.core.network import use_interface_of
from cluster.core.types import TrainingBatch
from cluster.run_state.checkpoints import CheckpointStore, learner_state
from cluster.training.actors import learner_options
from cluster.training.batch import mini_batches
from learner.engine.finite import NonFiniteError
from learner.model.batching import MicroBatch, Packing, shard

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

LOOPBACK = "127.0.0.1"
MEET_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Replayed:
    """The result of a replay."""

    samples: int
    """The number of responses that the update learns from."""
    findings: Sequence[str]
    """A line per response with anything that is not finite or extreme."""
    steps: Sequence[Mapping[str, float]] = field(default=())
    """The loss and the gradient norm of each optimizer step, up to one that failed. The norm may be missing there."""
    failure: str | None = None
    """The number that was not finite, or the reason why nothing could be computed; None if the update is finite."""


def run_replay(plan: ReplayPlan) -> Replayed:
    """Carry out `plan`. Nothing is written but temporary files.

    Raises:
        CheckpointError: if the checkpoint was deleted since it was planned, or cannot be read with these settings.
    """
    batches = mini_batches(plan.groups, plan.config)
    options = _options(plan)
    with _one_rank(options) as (engine, packing):
        if plan.checkpoint is not None:
            _load(engine, options, plan)
        return _computed(plan, batches, engine, packing, options)


def _options(plan: ReplayPlan) -> LearnerOptions:
    """Return the options of a rank that has the whole batch to itself, and computes on the CPU."""
    learner = plan.config.learner.model_copy(
        update={
            "ranks": 1,
            "gpus_per_rank": 0.0,
            "offload": "none",
            "threads_per_rank": len(os.sched_getaffinity(0)),
        }
    )
    return replace(
        learner_options(plan.config, plan.model, probe_tokens=()), learner=learner, shares_gpu=False
    )


@contextmanager
def _one_rank(options: LearnerOptions) -> Iterator[tuple[DeepSpeedEngine, Packing]]:
    """Yield the engine of a group of one rank. Its store listens on this machine only."""
    os.environ |= {"DS_ACCELERATOR": "cpu"} | use_interface_of(LOOPBACK)
    import torch

    from learner.engine.deepspeed_engine import build_engine
    from learner.engine.process_setup import (
        join_ranks,
        open_store,
        operator_folder,
        remove_stale_lock,
        set_numerics,
    )

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    set_numerics(options.learner, options.dtype)
    remove_stale_lock(operator_folder())
    store = open_store(LOOPBACK)
    join_ranks(
        store,
        0,
        1,
        on_gpu=False,
        meet_timeout_s=MEET_TIMEOUT_S,
        collective_timeout_s=options.learner.step_timeout_s,
    )
    try:
        yield build_engine(options)
    finally:
        torch.distributed.destroy_process_group()


def _load(engine: DeepSpeedEngine, options: LearnerOptions, plan: ReplayPlan) -> None:
    """Load the weights and the state of the optimizer, whatever the number of ranks that saved them."""
    from learner.state.training_state import load_training_state

    assert plan.checkpoint is not None
    store = CheckpointStore(plan.run.checkpoints, plan.config.checkpoint.keep)
    with tempfile.TemporaryDirectory(prefix="replay-") as scratch, store.held(plan.checkpoint):
        load_training_state(engine, learner_state(plan.checkpoint), options, Path(scratch) / "resized")


def _computed(
    plan: ReplayPlan,
    batches: Sequence[TrainingBatch],
    engine: DeepSpeedEngine,
    packing: Packing,
    options: LearnerOptions,
) -> Replayed:
    """Examine the batch, and compute its update with the weights of `engine`."""
    from learner.engine.finite import refuse_non_finite_weights
    from learner.engine.update import PolicyUpdate

    samples = sum(len(batch.samples) for batch in batches)
    vocabulary = engine.module.model.config.get_text_config().vocab_size
    reason = unusable(plan.groups, vocabulary)
    if reason is not None:
        found = findings(plan.groups, batches, vocabulary, {})
        return Replayed(samples, found, failure=f"the update cannot be computed: {reason}")
    work = [shard(batch.samples, 1, packing)[0] for batch in batches]
    logprobs = _learner_logprobs(engine, [each for mini_batch in work for each in mini_batch], options)
    update = PolicyUpdate(engine, options)
    failure = None
    try:
        update.learn(work)
        refuse_non_finite_weights(engine)
    except NonFiniteError as error:
        failure = str(error)
    return Replayed(samples, findings(plan.groups, batches, vocabulary, logprobs), update.steps, failure)


def _learner_logprobs(
    engine: DeepSpeedEngine, work: Sequence[MicroBatch], options: LearnerOptions
) -> dict[int, np.ndarray]:
    """Return the learner's log-probabilities, by the identity of the response's array of tokens."""
    import torch

    from learner.model.policy import TokenBatch, response_logprobs

    found = {}
    for micro_batch in work:
        batch = TokenBatch.from_micro_batch(micro_batch, engine.device)
        with torch.no_grad():
            logprobs_BT, _ = response_logprobs(engine, batch, options.temperature)
        samples = [sample for bundle in micro_batch for sample in bundle]
        for sample, row in zip(samples, logprobs_BT.float().cpu().numpy(), strict=True):
            found[id(sample.response_token_ids)] = row[: len(sample.response_token_ids)]
    return found
