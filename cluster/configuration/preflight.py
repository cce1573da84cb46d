"""Everything that can be known to be wrong before a single actor starts, found all at once. Torch-free.

Each check looks at one thing and yields what is wrong with it. None of them imports Ray, vLLM or torch;
transformers is loaded only to measure the prompts of a model that is not the starter.
"""

from __future__ import annotations

import errno
import importlib.util
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster.configuration.learner_checks import check_adapters, check_learner
from cluster.configuration.loading import validate
from cluster.configuration.objective_checks import check_objective
from cluster.core.config import Room, RunConfig
from cluster.core.problem import Problem
from cluster.models.source import locate, ready_directory
from cluster.models.starter import find_starter, starter_tasks
from learner.model.prefix_support import prefix_obstacle
from reward.dataset.rows import DatasetProblems
from reward.registry import build_task, task_class, task_names
from reward.task import NotedTask, Task
from reward.verifier_check import verifier_problem

ROOMS: tuple[Room, ...] = ("rollout", "learner", "reward")


def preflight(config: RunConfig, rooms: Collection[Room] = ROOMS) -> list[Problem]:
    """All problems of `config` on this machine, where actors of `rooms` are to run."""
    problems = [problem for check in _CHECKS for problem in check(config)]
    return list(dict.fromkeys([*problems, *check_resources(config, rooms)]))  # each once


def check_arithmetic(config: RunConfig) -> Iterator[Problem]:
    rollout, learner = config.rollout, config.learner
    if rollout.prompts_per_step % learner.mini_batches:
        yield Problem(
            "rollout.prompts_per_step",
            f"{rollout.prompts_per_step} prompts do not divide into learner.mini_batches = {learner.mini_batches}",
            f"take a multiple of {learner.mini_batches}",
        )
    if rollout.max_workers is not None and not rollout.min_workers <= rollout.workers <= rollout.max_workers:
        yield Problem(
            "rollout.workers",
            f"{rollout.workers} is not between rollout.min_workers = {rollout.min_workers} and rollout.max_workers = "
            f"{rollout.max_workers}",
            "start with a number between them",
        )
    if rollout.oversampling is not None and rollout.oversampling > rollout.max_staleness + 1:
        yield Problem(
            "rollout.oversampling",
            f"{rollout.oversampling:g} batches in flight would be staler than rollout.max_staleness = "
            f"{rollout.max_staleness} allows",
            f"lower it to {rollout.max_staleness + 1} or less, or raise rollout.max_staleness",
        )
    if rollout.response_timeout_s is not None and rollout.response_timeout_s >= rollout.request_timeout_s:
        yield Problem(
            "rollout.response_timeout_s",
            f"{rollout.response_timeout_s:g} s is not below rollout.request_timeout_s = "
            f"{rollout.request_timeout_s:g}, after which the worker is replaced",
            "lower the one or raise the other",
        )
    if rollout.weight_transport == "broadcast" and bool(rollout.gpus_per_worker) != bool(
        learner.gpus_per_rank
    ):
        yield Problem(
            "rollout.weight_transport",
            "weights cannot be broadcast between GPUs and CPUs (rollout.gpus_per_worker, learner.gpus_per_rank)",
            "set it to pull",
        )
    if rollout.sleep_while_learning and rollout.max_staleness:
        yield Problem(
            "rollout.sleep_while_learning",
            f"with rollout.max_staleness = {rollout.max_staleness} workers sample while the learner learns",
            "leave it out, or set rollout.max_staleness to 0",
        )
    if rollout.sleep_while_learning and rollout.weight_transport == "broadcast":
        yield Problem(
            "rollout.sleep_while_learning",
            "engines that share a GPU with the learner cannot be sent its weights: NCCL wants one for each",
            "set rollout.weight_transport to pull",
        )
    starter = find_starter(config.task.name) if config.model.source == "starter" else None
    if starter is not None and config.model.max_context_tokens > (limit := starter.recipe.max_tokens):
        yield Problem(
            "model.max_context_tokens",
            f"{config.model.max_context_tokens} is more than the {limit} that the starter model can take",
            f"lower it to {limit}",
        )
    if rollout.max_response_tokens >= config.model.max_context_tokens:
        yield Problem(
            "rollout.max_response_tokens",
            f"{rollout.max_response_tokens} leave no room for a prompt in model.max_context_tokens = "
            f"{config.model.max_context_tokens}",
            "lower the one or raise the other",
        )


def check_resources(config: RunConfig, rooms: Collection[Room] = ROOMS) -> Iterator[Problem]:
    """On this machine alone: what a running cluster has is known when it is joined."""
    if config.cluster.address or os.environ.get("RAY_ADDRESS"):
        return
    if config.cluster.node_labels:
        yield Problem(
            "cluster.node_labels",
            "Ray on this machine alone has no nodes to choose from",
            "leave it out, or join a cluster with --address",
        )
    rollout, learner, reward = config.rollout, config.learner, config.reward
    asked: dict[Room, tuple[str, float, float]] = {
        "rollout": (
            "rollout.workers × cpus_per_worker",
            rollout.workers * rollout.cpus_per_worker,
            rollout.workers * rollout.gpus_per_worker,
        ),
        "learner": (
            "learner.ranks × cpus_per_rank",
            learner.ranks * learner.cpus_per_rank,
            learner.ranks * learner.gpus_per_rank,
        ),
        "reward": ("reward.workers × cpus_per_worker", reward.workers * reward.cpus_per_worker, 0.0),
    }
    parts = " + ".join(asked[room][0] for room in rooms)
    cpus = round(sum(asked[room][1] for room in rooms), 4)  # as Ray counts; 3 × 0.1 + 0.7 is 1
    gpus = sum(asked[room][2] for room in rooms)
    there = os.cpu_count() or 1
    if cpus > there:
        yield Problem(
            "cluster",
            f"the run asks for {cpus:g} CPUs ({parts}), this machine has {there}",
            "lower them (fractions are fine), or join a cluster with --address",
        )
    if gpus > (here := _gpus()):
        yield Problem(
            "cluster",
            f"the run asks for {gpus:g} GPUs, this machine has {here}",
            "lower rollout.gpus_per_worker or learner.gpus_per_rank, or join a cluster with --address",
        )


def _gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        devices = [device.strip() for device in visible.split(",")]
        return len(
            list(itertools.takewhile(lambda device: device not in ("", "-1"), devices))
        )  # as CUDA reads it
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def check_model(config: RunConfig) -> Iterator[Problem]:
    try:
        locate(config.model)
    except ValueError as error:
        yield Problem("model.source", str(error), "name a directory, a hub id, a .gguf file, or starter")
    if config.model.source == "starter" and find_starter(config.task.name) is None:
        known = ", ".join(starter_tasks())
        yield Problem(
            "model.source",
            f"the task {config.task.name} has no starter model (tasks that have one: {known})",
            "name another model",
        )


def check_context(config: RunConfig) -> Iterator[Problem]:
    """A model takes no more tokens than its configuration says."""
    if config.model.source == "starter":  # see check_arithmetic
        return
    known = _model_configuration(config)
    if not isinstance(limit := known.get("max_position_embeddings"), int):
        return
    if "factor" in (known.get("rope_parameters") or known.get("rope_scaling") or {}):
        return  # how far it goes depends on the kind of scaling
    if config.model.max_context_tokens > limit:
        yield Problem(
            "model.max_context_tokens",
            f"{config.model.max_context_tokens} is more than the {limit} that {config.model.source} can take "
            "(max_position_embeddings in its config.json)",
            f"lower it to {limit}",
        )


def check_prefix_sharing(config: RunConfig) -> Iterator[Problem]:
    """As far as the model's configuration tells; the rest shows when the learner starts."""
    if config.learner.prefix_sharing != "on" or config.model.source == "starter":
        return
    obstacle = prefix_obstacle(_model_configuration(config), config.model.max_context_tokens)
    if obstacle is not None:
        yield Problem(
            "learner.prefix_sharing",
            f"the responses of a group cannot share the computation of their prompt: {obstacle}",
            "set it to auto or off",
        )


def _model_configuration(config: RunConfig) -> dict[str, Any]:
    """The model's config.json; empty if it is not there yet, or not to be read."""
    try:
        directory = ready_directory(config)
        known = json.loads((directory / "config.json").read_text(encoding="utf-8")) if directory else {}
    except ValueError:  # not there: reported by check_model; not JSON: whoever loads it says so
        return {}
    return known if isinstance(known, dict) else {}


def check_task(config: RunConfig) -> Iterator[Problem]:
    """The task exists, takes its options, has problems in both splits, and they fit into the model's context."""
    if config.task.name not in task_names():
        yield Problem(
            "task.name", f"there is no task {config.task.name!r}", f"known: {', '.join(task_names())}"
        )
        return
    kind = task_class(config.task.name)
    options, problems = validate(kind.Options, config.task.options, "task.options")
    yield from problems
    if problems:
        return
    task = kind(options)
    splits: dict[str, Sequence[Any]] = {}
    for split in ("train", "eval"):
        try:
            splits[split] = task.problems(split)
        except ValueError as error:
            yield Problem("task.options", str(error), "change the task's options")
            continue
        if not splits[split]:
            yield Problem("task.options", f"the {split} split is empty", "change the task's options")
    if all(splits.get(split) for split in ("train", "eval")):
        yield from _check_prompts(config, task, [*splits["train"], *splits["eval"]])
        yield from _check_verifier(config, task, splits["eval"][0])


def _check_prompts(config: RunConfig, task: Task, problems: Sequence[Any]) -> Iterator[Problem]:
    try:
        lengths = _prompt_tokens(config, task, problems)
    except ValueError as error:
        yield Problem("task", " ".join(str(error).split()), "change task.options or model.source")
        return
    room = config.model.max_context_tokens - config.rollout.max_response_tokens
    too_long = [length for length in lengths if length > room]
    if too_long:
        needed = max(lengths) + config.rollout.max_response_tokens
        others = f" ({len(too_long)} of {len(lengths)} prompts do not)" if len(too_long) > 1 else ""
        drop = (
            ", or leave long prompts out (max_prompt_characters)" if isinstance(task, DatasetProblems) else ""
        )
        yield Problem(
            "model.max_context_tokens",
            f"the longest prompt has {max(lengths)} tokens, and with rollout.max_response_tokens = "
            f"{config.rollout.max_response_tokens} does not fit into {config.model.max_context_tokens}{others}",
            f"raise it to {needed} or more{drop}",
        )


def _prompt_tokens(config: RunConfig, task: Task, problems: Sequence[Any]) -> list[int]:
    """Of each prompt. Empty if it cannot be known before the model is built or fetched; then it is found when it is."""
    if config.model.source == "starter":
        from cluster.models.starter import prompt_tokens

        return [prompt_tokens(task.render(problem)) for problem in problems]
    try:
        directory = ready_directory(config)
    except ValueError:  # reported by check_model
        return []
    if directory is None:
        return []
    from rollout.engine.tokenizer import PromptEncoder

    encoder = PromptEncoder(directory)
    return [len(encoder.encode(task.render(problem)).token_ids) for problem in problems]


def _check_verifier(config: RunConfig, task: Task, problem: Any) -> Iterator[Problem]:
    """A verifier that is the user's own is started and asked once."""
    search_path = [os.getcwd()]
    if option := getattr(task, "verifier_option", None):
        unshaped = config.reward.model_copy(update={"shaping": ()})
        if obstacle := verifier_problem(config.task, unshaped, search_path, problem):
            yield Problem(f"task.options.{option}", obstacle, "mend the verifier (docs/rewards.md)")
            return
    if config.reward.shaping and (
        obstacle := verifier_problem(config.task, config.reward, search_path, problem)
    ):
        yield Problem("reward.shaping", obstacle, "mend the function (docs/rewards.md)")


def task_notes(config: RunConfig) -> Sequence[str]:
    """What a sound configuration's task has to say of its data."""
    task = build_task(config.task.name, config.task.options)
    return task.notes() if isinstance(task, NotedTask) else ()


def check_run_directory(config: RunConfig) -> Iterator[Problem]:
    try:
        where = config.run_directory
    except RuntimeError as error:
        yield Problem("directory", str(error), "set directory to a place that can be written")
        return
    existing = next(path for path in (where, *where.parents) if path.exists())
    try:
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(existing))
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        yield Problem(
            "directory",
            f"the run directory {where} cannot be written ({existing}: {error.strerror})",
            "set directory to a place that can",
        )


def check_packages(config: RunConfig) -> Iterator[Problem]:
    for package in ("ray", "vllm", "torch", "deepspeed", "transformers"):
        if importlib.util.find_spec(package) is None:
            yield Problem("environment", f"the Python package {package} is not installed", "run: make setup")
    if config.tracking.wandb != "disabled" and importlib.util.find_spec("wandb") is None:
        yield Problem(
            "tracking.wandb",
            "the Python package wandb is not installed",
            "set it to disabled, or install wandb",
        )


_CHECKS: tuple[Callable[[RunConfig], Iterator[Problem]], ...] = (
    check_arithmetic,
    check_learner,
    check_objective,
    check_model,
    check_context,
    check_prefix_sharing,
    check_adapters,
    check_task,
    check_run_directory,
    check_packages,
)
