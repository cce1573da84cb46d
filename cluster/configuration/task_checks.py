"""Check the task: its options, its problems, its prompts and its verifier.

transformers is imported only to measure the prompts of a model that is not a starter model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cluster.configuration.example_prompts import Rendered
from cluster.configuration.loading import validate
from cluster.configuration.messages import closest
from cluster.configuration.rescue_checks import check_examples
from cluster.configuration.task_prompts import encoded_problems
from cluster.core.config import RunConfig
from cluster.core.problem import Problem
from cluster.models.source import ready_directory
from reward.dataset.rows import DatasetProblems
from reward.registry import build_task, task_class, task_names
from reward.task import NotedTask, Task
from reward.verifier_check import verifier_problem
from rollout.engine.chat_template import PromptError
from rollout.fleet.buffer import slots

_OF_OTHERS = {
    "name",
    "directory",
    "steps",
    "objective",
    "learner",
    "evaluation",
    "checkpoint",
    "tracking",
    "cluster",
}
"""The settings that the check of a task does not look at."""


def once_per_task() -> Callable[[RunConfig], Iterator[Problem]]:
    """Return a `check_task` that remembers what it has found, and looks once at configurations that differ only in
    settings of no importance to it. The variants of a comparison mostly have one task."""
    found: dict[str, list[Problem]] = {}

    def check(config: RunConfig) -> Iterator[Problem]:
        key = config.model_dump_json(exclude=_OF_OTHERS)
        if key not in found:
            found[key] = list(check_task(config))
        yield from found[key]

    return check


def check_task(config: RunConfig) -> Iterator[Problem]:
    """Report an unknown task, invalid options, an empty split, prompts that do not fit into the context, and a
    verifier that fails."""
    if config.task.name not in task_names():
        near = closest(config.task.name, task_names())
        known = f"known tasks: {', '.join(task_names())}"
        yield Problem(
            "task.name",
            f"there is no task {config.task.name!r}",
            f"did you mean {near}? ({known})" if near else f"choose one of the {known}",
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
        yield from _check_selection(config, len(splits["train"]))
        unusable = list(_check_prompts(config, task, [*splits["train"], *splits["eval"]]))
        yield from unusable or _check_examples(config, task, splits["train"])
        yield from _check_verifier(config, task, splits["eval"][0])


def _check_selection(config: RunConfig, prompts: int) -> Iterator[Problem]:
    """Report an informative selection that has to draw a prompt while all of them are in flight.

    A prompt counts as in flight until its batch is complete, even if dynamic sampling has dropped it before.
    """
    rollout = config.rollout
    if config.task.selection != "informative":
        return
    try:
        needed = slots(rollout.prompts_per_step, rollout.max_staleness, rollout.oversampling)
    except ValueError:  # check_rollout reports it
        return
    if rollout.dynamic_sampling_limit is not None:
        needed += (rollout.dynamic_sampling_limit - 1) * rollout.prompts_per_step
    if prompts < needed:
        yield Problem(
            "task.selection",
            f"informative draws no prompt again while it is in flight, and up to {needed} are in flight (rollout."
            f"prompts_per_step, max_staleness, oversampling, dynamic_sampling_limit), but the training split has "
            f"{prompts}",
            "lower these settings, use more training prompts, or set it to uniform",
        )


def _check_prompts(config: RunConfig, task: Task, problems: Sequence[Any]) -> Iterator[Problem]:
    """Report prompts that cannot be encoded, or that do not fit into the context together with a response."""
    try:
        lengths = _prompt_tokens(config, task, problems)
    except PromptError as error:
        yield Problem("task", str(error))
        return
    except ValueError as error:
        yield Problem("task", " ".join(str(error).split()), "change task.options or model.source")
        return
    longest, limit = max(lengths, default=0), config.model.max_context_tokens
    too_long = sum(length + config.rollout.max_response_tokens > limit for length in lengths)
    if too_long:
        count = f" ({too_long} of {len(lengths)} prompts do not fit)" if too_long > 1 else ""
        drop = ", or drop long prompts (max_prompt_characters)" if isinstance(task, DatasetProblems) else ""
        yield Problem(
            "model.max_context_tokens",
            f"the longest prompt has {longest} tokens, which with rollout.max_response_tokens = "
            f"{config.rollout.max_response_tokens} does not fit into {limit}{count}",
            f"raise it to {longest + config.rollout.max_response_tokens} or more{drop}",
        )


def _prompt_tokens(config: RunConfig, task: Task, problems: Sequence[Any]) -> list[int]:
    """Return the number of tokens of each prompt. The list is empty if the model must be built or downloaded first.
    Then the run checks the prompts."""
    if config.model.source == "starter":
        from cluster.models.starter import prompt_tokens

        return [prompt_tokens(task.render(problem)) for problem in problems]
    try:
        directory = ready_directory(config)
    except ValueError:  # check_model reports it
        return []
    if directory is None:
        return []
    from rollout.engine.tokenizer import PromptEncoder

    return [len(encoded.token_ids) for encoded in encoded_problems(PromptEncoder(directory), task, problems)]


def _check_examples(config: RunConfig, task: Task, problems: Sequence[Any]) -> Iterator[Problem]:
    """Report examples that the task cannot give, or that leave no room for a prompt."""
    if config.rescue.examples == 0:
        return
    try:
        yield from check_examples(config, task, problems, _token_counter(config))
    except PromptError as error:
        yield Problem("rescue.examples", str(error), "leave it out, or choose another model")


def _token_counter(config: RunConfig) -> Callable[[Rendered], int] | None:
    """Return a function that counts the tokens of a prompt, or None if the model must be downloaded first."""
    if config.model.source == "starter":
        from cluster.models.starter import find_starter, prompt_tokens

        starter = find_starter(config.task.name)
        added_tokens = () if starter is None else starter.added_tokens
        return lambda prompt: prompt_tokens(prompt, added_tokens)
    try:
        directory = ready_directory(config)
    except ValueError:  # check_model reports it
        return None
    if directory is None:
        return None
    from rollout.engine.tokenizer import PromptEncoder

    encoder = PromptEncoder(directory)
    return lambda prompt: len(encoder.encode(prompt).token_ids)


def _check_verifier(config: RunConfig, task: Task, problem: Any) -> Iterator[Problem]:
    """Start a user-defined verifier, score one response with it, and report its failure."""
    search_path = [os.getcwd()]
    if option := getattr(task, "verifier_option", None):
        unshaped = config.reward.model_copy(update={"shaping": ()})
        if obstacle := verifier_problem(config.task, unshaped, search_path, problem):
            yield Problem(f"task.options.{option}", obstacle, "fix the verifier (docs/rewards.md)")
            return
    if config.reward.shaping and (
        obstacle := verifier_problem(config.task, config.reward, search_path, problem)
    ):
        yield Problem("reward.shaping", obstacle, "fix the function (docs/rewards.md)")


def task_notes(config: RunConfig) -> Sequence[str]:
    """Return the task's notes on its data. The configuration must be valid."""
    task = build_task(config.task.name, config.task.options)
    return task.notes() if isinstance(task, NotedTask) else ()
