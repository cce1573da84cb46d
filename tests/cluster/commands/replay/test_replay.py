"""A kept batch is examined, and its update is the one that the ranks of the run have computed."""

from __future__ import annotations

import math
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from torch.multiprocessing.spawn import start_processes
from typer.testing import CliRunner

from cluster.commands.replay.findings import findings, unusable
from cluster.commands.replay.plan import plan_replay
from cluster.commands.replay.run import _computed, _options
from cluster.core.config import RunConfig
from cluster.core.errors import RefusedError
from cluster.core.types import ScoredGroup
from cluster.run_state.checkpoints import CheckpointStore, learner_state
from cluster.run_state.run_directory import RunDirectory
from cluster.tracking.kept_batch import write_batch
from cluster.training.actors import learner_options
from cluster.training.batch import mini_batches
from launch import app
from learner.engine.update import PolicyUpdate
from learner.model.batching import Packing, shard
from learner.model.supervised import character_tokenizer
from tests.builders import make_group, make_progress, make_prompt, make_response, tiny_model
from tests.learner.engine.rank_processes import PRELOADED, in_ranks
from tests.learner.engine.test_update import PlainEngine

RANKS = 2


def group_of(rewards: list[float], first: int) -> ScoredGroup:
    responses = [make_response([first, 9, 11 + index]) for index in range(len(rewards))]
    return make_group(rewards, responses, make_prompt(f"train/0/{first}", (5, 6, first)))


GROUPS = [group_of([1.0, 0.0, 0.0], 7), group_of([1.0, 1.0, 0.0], 8)]


def made_run(place: Path, **sections: Any) -> RunDirectory:
    """Write a run that has kept a batch of step 3."""
    model = place / "model"
    tiny_model("llama").float().save_pretrained(model)
    character_tokenizer("0123456789+-*/()= ", ("<think>",), 64).save_pretrained(model)
    values = {
        "name": "demo",
        "directory": str(place),
        "model": {"source": str(model), "max_context_tokens": 32},
        "rollout": {"max_response_tokens": 8, "prompts_per_step": 2, "responses_per_prompt": 3},
        "learner": {"ranks": RANKS, "zero_stage": 2, "learning_rate": 1e-2, "cpus_per_rank": 0.1},
        **sections,
    }
    config = RunConfig.model_validate(values)
    run = RunDirectory(config.run_directory)
    run.create()
    run.write_config(config)
    run.failed_batches.mkdir()
    write_batch(run.failed_batch_file(3), GROUPS)
    return run


def saved_and_trained(run: Path, state: Path) -> dict[str, float]:
    """Train one step, save a checkpoint, and return the loss and the norm of the step after it."""
    from torch import distributed

    from learner.engine.deepspeed_engine import build_engine
    from learner.state.training_state import save_training_state

    config = RunDirectory(run).read_config()
    options = learner_options(config, Path(config.model.source), ())
    engine, packing = build_engine(options)
    update = PolicyUpdate(engine, options)
    rank = distributed.get_rank()
    work = [shard(batch.samples, RANKS, packing)[rank] for batch in mini_batches(GROUPS, config)]
    update.learn(work)
    state.mkdir(exist_ok=True)
    save_training_state(engine, state, options)
    (step,) = update.learn(work)
    return {"loss": step["loss"], "grad_norm": step["grad_norm"]}


@pytest.mark.slow
@pytest.mark.timeout(900)  # on a busy machine processes take minutes to import their libraries
def test_the_update_is_computed_again_from_a_checkpoint(tmp_path: Path) -> None:
    """One process computes what two ranks with ZeRO 2 did; and it finds what is wrong with a batch."""
    run = made_run(tmp_path)
    store = CheckpointStore(run.checkpoints, keep=2)
    path = store.begin(2)
    by_rank = in_ranks(RANKS, tmp_path, saved_and_trained, run.path, learner_state(path))
    store.commit(path, make_progress(2))
    loss, norm = sum(each["loss"] for each in by_rank), by_rank[0]["grad_norm"]
    assert norm > 0
    said = replayed(tmp_path, run.path)
    assert f"configuration: {run.config_file}" in said
    assert f"weights: {path}" in said
    assert said[-1] == "result: the update is finite with these weights and settings"
    (step,) = [line for line in said if line.startswith("optimizer step 1: ")]
    words = step.replace(",", "").split()
    assert float(words[4]) == pytest.approx(loss, rel=1e-3, abs=1e-6)
    assert float(words[7]) == pytest.approx(norm, rel=1e-3)

    config = run.read_config()
    rewarded = [
        replace(GROUPS[0], verdicts=tuple(replace(v, reward=v.reward * 1e308) for v in GROUPS[0].verdicts))
    ]
    run.write_config(
        config.model_copy(
            update={"objective": config.objective.model_copy(update={"advantage_scaling": "none"})}
        )
    )
    second = run.failed_batch_file(3)
    write_batch(second, [*rewarded, GROUPS[1]])
    said = replayed(tmp_path, second, 0)
    assert any("train/0/7, response 0: reward 1e+308; advantage" in line for line in said)
    assert "(the model that the run started with)" in said[2]
    assert not said[-1].startswith("result: the update is finite")


def replayed(folder: Path, place: Path, step: int | None = None) -> list[str]:
    """Return what the command prints. Its process is a fork of one that has imported the libraries."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    file = folder / "said"
    start_processes(say, (place, step, file), nprocs=1, start_method="forkserver")
    return file.read_text().splitlines()


def say(_: int, place: Path, step: int | None, file: Path) -> None:
    result = CliRunner().invoke(app, ["replay", str(place), *([] if step is None else ["--step", str(step)])])
    assert result.exit_code == 0, result.output
    file.write_text(result.stdout)


@pytest.mark.parametrize("reward", [1.0, math.nan])
def test_the_loss_and_the_norm_are_those_of_the_update(tmp_path: Path, reward: float) -> None:
    run = made_run(tmp_path, objective={"advantage_scaling": "none"})
    verdicts = tuple(replace(verdict, reward=verdict.reward * reward) for verdict in GROUPS[0].verdicts)
    write_batch(run.failed_batch_file(3), [replace(GROUPS[0], verdicts=verdicts), GROUPS[1]])
    plan = plan_replay(run.path)
    options = _options(plan)
    assert (options.learner.ranks, options.learner.gpus_per_rank) == (1, 0)
    batches = mini_batches(plan.groups, plan.config)
    packing = Packing(64, "off")
    found = _computed(plan, batches, cast(Any, PlainEngine()), packing, options)
    assert found.samples == 6
    if math.isnan(reward):
        assert found.failure is not None
        assert "of optimizer step 1 of the batch is" in found.failure
        assert "reward nan; advantage nan" in found.findings[0]
        return
    update = PolicyUpdate(cast(Any, PlainEngine()), options)
    (expected,) = update.learn([shard(batches[0].samples, 1, packing)[0]])
    assert found.failure is None
    assert [step["loss"] for step in found.steps] == [expected["loss"]]
    assert [step["grad_norm"] for step in found.steps] == [expected["grad_norm"]]


def test_what_is_not_finite_or_extreme_is_named() -> None:
    bad = make_response([5, 99, 6, 7], logprobs=[-1.0, math.nan, -1e4, 2.0])
    groups = [make_group([math.inf, 0.0], [bad, make_response()])]
    (line,) = findings(groups, [], 64, {id(bad.token_ids): np.array([-20.0, math.nan, 0.0, 0.0])})
    for text in (
        "train/0/0, response 0: ",
        "1 tokens outside the vocabulary of 64, such as 99",
        "reward inf",
        "the sampler's log-probability of 1 of 4 tokens is NaN or infinite, first of token 1",
        "the sampler's smallest log-probability is -10000",
        "the sampler's largest log-probability is 2, above 0",
        "the learner's log-probability of 1 of 4 tokens is NaN or infinite",
        "sampler and learner differ by up to 10000",
    ):
        assert text in line
    assert "outside the vocabulary" in (unusable(groups, 64) or "")
    assert "no tokens" in (unusable([make_group([1.0], [make_response(0)])], 64) or "")
    assert unusable(GROUPS, 64) is None
    assert findings(GROUPS, [], 64, {}) == []


def test_the_newest_batch_and_the_newest_checkpoint_before_it_are_used(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    assert plan_replay(run.path).checkpoint is None
    for attempt in range(2, 12):  # by number: 10 comes after 9
        write_batch(run.failed_batches / f"step_000005-{attempt}.jsonl", GROUPS)
    store = CheckpointStore(run.checkpoints, keep=9)
    for step in (2, 4, 5):
        store.commit(store.begin(step), make_progress(step))
    plan = plan_replay(run.path)
    assert (plan.batch.name, plan.step, plan.weights_step) == ("step_000005-11.jsonl", 5, 4)
    first = plan_replay(run.failed_batches / "step_000003-1.jsonl")
    assert (first.step, first.weights_step) == (3, 2)
    assert plan_replay(run.path, 5).weights_step == 5
    assert plan_replay(run.path, 0).checkpoint is None


def test_an_impossible_replay_is_refused_in_one_line(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    (run.failed_batches / "copy.jsonl").write_bytes((run.failed_batches / "step_000003-1.jsonl").read_bytes())
    cases: dict[str, tuple[Path, int | None]] = {
        "no complete checkpoint of step 7": (run.path, 7),
        "not the name of a kept batch": (run.failed_batches / "copy.jsonl", None),
        "there is no such file": (run.failed_batches / "step_000009-1.jsonl", None),
        "not a run directory": (tmp_path / "elsewhere.jsonl", None),
    }
    for reason, (place, step) in cases.items():
        with pytest.raises(RefusedError, match=reason) as refusal:
            plan_replay(place, step)
        assert "\n" not in str(refusal.value)
    config = run.read_config()
    run.write_config(
        config.model_copy(update={"learner": config.learner.model_copy(update={"mini_batches": 3})})
    )
    with pytest.raises(RefusedError, match=r"cannot be divided into learner\.mini_batches = 3"):
        plan_replay(run.path)
    for file in run.failed_batch_files:
        file.unlink()
    with pytest.raises(RefusedError, match="the run has kept no batch"):
        plan_replay(run.path)
