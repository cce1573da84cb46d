"""Invalid tasks, options and data, failing verifiers and long prompts are reported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.configuration import task_checks
from cluster.configuration.loading import load_config
from cluster.configuration.preflight import preflight
from cluster.configuration.task_checks import task_notes
from cluster.core.config import RunConfig, TaskConfig
from cluster.core.problem import Problem
from cluster.models.starter import prompt_tokens
from reward.tasks.countdown.starter import ANSWER_TAGS, COMPACT_CHARACTERS, STARTER
from reward.tasks.countdown.task import CountdownOptions, CountdownTask
from reward.tasks.telelogs import starter as telelogs_starter
from reward.tasks.telelogs.task import TeleLogsOptions, TeleLogsTask
from tests.cluster.configuration.runs import only_problem, run_config


def longest_starter_prompt() -> int:
    task = CountdownTask(CountdownOptions())
    return max(
        prompt_tokens(task.render(problem)) for split in ("train", "eval") for problem in task.problems(split)
    )


def test_the_longest_prompt_and_a_response_must_fit_into_the_context(tmp_path: Path) -> None:
    """The limit is exact to the token."""
    needed = longest_starter_prompt() + 64
    assert preflight(run_config(tmp_path, model={"max_context_tokens": needed})) == []
    problem = only_problem(run_config(tmp_path, model={"max_context_tokens": needed - 1}))
    assert problem.where == "model.max_context_tokens"
    assert problem.fix == f"raise it to {needed} or more"


def test_prompts_of_the_starter_have_the_length_that_its_tokenizer_gives() -> None:
    """`check` counts characters, because the model may not have been built yet."""
    from learner.model.supervised import character_tokenizer

    tokenizer = character_tokenizer(COMPACT_CHARACTERS, ANSWER_TAGS, STARTER.recipe.max_tokens)
    task = CountdownTask(CountdownOptions())
    for problem in task.problems("eval"):
        prompt = task.render(problem)
        assert prompt_tokens(prompt) == len(tokenizer(prompt).input_ids)


def test_prompts_of_an_existing_model_are_measured_with_its_tokenizer(tmp_path: Path) -> None:
    """This tokenizer adds a token before every text."""
    from tokenizers.processors import TemplateProcessing

    from learner.model.supervised import EOS, character_tokenizer

    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 2048}')
    tokenizer = character_tokenizer(COMPACT_CHARACTERS, ANSWER_TAGS, 2048)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{EOS} $A", special_tokens=[(EOS, tokenizer.eos_token_id)]
    )
    tokenizer.save_pretrained(model)
    needed = 1 + longest_starter_prompt() + 64
    source = {"source": str(model), "max_context_tokens": needed}
    assert preflight(run_config(tmp_path, model=source)) == []
    problem = only_problem(run_config(tmp_path, model=source | {"max_context_tokens": needed - 1}))
    assert problem.fix == f"raise it to {needed} or more"

    chat = only_problem(run_config(tmp_path, model=source, task={"options": {"style": "chat"}}))
    assert "no chat template" in chat.what


def test_the_starter_cannot_read_chat_messages(tmp_path: Path) -> None:
    problem = only_problem(run_config(tmp_path, task={"options": {"style": "chat"}}))
    assert "task.options.style" in problem.what


COMPACT_TELELOGS = {"style": "compact", "train_problems": 8, "eval_problems": 4}


def test_the_starter_of_telelogs_supports_longer_prompts(tmp_path: Path) -> None:
    """The limit is exact to the token, and it is not that of Countdown's starter."""
    from learner.model.supervised import character_tokenizer

    built = TeleLogsTask(TeleLogsOptions.model_validate(COMPACT_TELELOGS))
    tokenizer = character_tokenizer(telelogs_starter.COMPACT_CHARACTERS, telelogs_starter.ANSWER_TAGS, 512)
    prompts = [built.render(problem) for split in ("train", "eval") for problem in built.problems(split)]
    assert all(prompt_tokens(prompt) == len(tokenizer(prompt).input_ids) for prompt in prompts)
    needed = max(map(prompt_tokens, prompts)) + 64
    assert needed > STARTER.recipe.max_tokens
    task = {"name": "telelogs", "options": COMPACT_TELELOGS}
    assert preflight(run_config(tmp_path, task=task, model={"max_context_tokens": needed})) == []
    short = only_problem(run_config(tmp_path, task=task, model={"max_context_tokens": needed - 1}))
    assert short.fix == f"raise it to {needed} or more"
    long = only_problem(run_config(tmp_path, task=task, model={"max_context_tokens": 513}))
    assert long.fix == "lower it to 512"


@pytest.mark.parametrize("style", ["full", "compact_chat"])
def test_the_starter_reads_compact_drive_tests_only(tmp_path: Path, style: str) -> None:
    task = {"name": "telelogs", "options": COMPACT_TELELOGS | {"style": style}}
    assert "task.options.style" in only_problem(run_config(tmp_path, task=task)).what


def test_unreadable_data_is_found_before_a_run(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"question": "q", "answer": "C9"}')
    task = {"name": "telelogs", "options": {"data": str(data)}}
    problems = preflight(run_config(tmp_path, task=task))
    assert {str(problem) for problem in problems} == {
        "task.options: rows.jsonl:1: the answer 'C9' is not one of C1 … C8; change the task's options"
    }


def test_an_unknown_task_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    problems = preflight(run_config(tmp_path, task={"name": "countdwn"}))
    assert problems[-1].where == "task.name"
    assert "countdown" in problems[-1].fix


def test_a_misspelled_task_option_is_recognized(tmp_path: Path) -> None:
    problem = only_problem(run_config(tmp_path, task={"options": {"nubmers": 3}}))
    assert (problem.where, problem.fix) == ("task.options.nubmers", "did you mean numbers?")


def test_options_that_allow_no_puzzles_are_found_for_both_splits(tmp_path: Path) -> None:
    options = {"target_min": 5000, "target_max": 5000}
    problems = preflight(run_config(tmp_path, task={"options": options}))
    assert [problem.where for problem in problems] == ["task.options"] * 2
    assert {word for problem in problems for word in problem.what.split()} >= {"train", "eval", "empty"}


def test_more_puzzles_than_exist_are_refused(tmp_path: Path) -> None:
    problem = only_problem(run_config(tmp_path, task={"options": {"eval_puzzles": 10**6}}))
    assert "there are only" in problem.what


@pytest.mark.parametrize("options", [{"number_min": 9, "number_max": 3}, {"target_min": 9, "target_max": 3}])
def test_a_mistake_in_both_splits_is_reported_once(tmp_path: Path, options: dict[str, int]) -> None:
    assert only_problem(run_config(tmp_path, task={"options": options})).where == "task.options"


def test_too_many_puzzles_to_enumerate_are_answered_with_the_settings_to_give(tmp_path: Path) -> None:
    problems = preflight(run_config(tmp_path, task={"options": {"numbers": 6}}))
    assert {problem.where.split(".")[0] for problem in problems} == {"task"}
    for setting in ("train_puzzles", "eval_puzzles"):
        assert any(setting in str(problem) for problem in problems)


def python_run(directory: Path, prompts: int = 30, **changes: Any) -> RunConfig:
    """Return a run with a data set and a verifier in `directory`. The prompts of its model cannot be measured."""
    rows = [{"prompt": f"{i} + {i}?", "answer": str(2 * i)} for i in range(prompts)]
    (directory / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "my_rewards.py").write_text(
        "def score(problem, response):\n    return response.strip() == problem['answer']\n\n\n"
        "def short(problem, response):\n    return -len(response) / 100\n\n\n"
        "def broken(problem, response):\n    return None\n"
    )
    (directory / "model").mkdir(exist_ok=True)
    (directory / "model" / "config.json").write_text("{}")
    options = {"data": str(directory / "data.jsonl"), "function": "my_rewards:score"}
    return run_config(
        directory,
        model={"source": str(directory / "model"), "max_context_tokens": 128},
        task={"name": "python", "options": options | changes.pop("options", {})},
        **changes,
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, which contains the user's modules. Prompts are not measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "cluster.configuration.task_checks._prompt_tokens", lambda config, task, problems: [len(problems)]
    )
    return tmp_path


def test_a_user_defined_verifier_is_found_in_the_working_directory(here: Path) -> None:
    assert preflight(python_run(here)) == []
    assert preflight(python_run(here, reward={"shaping": [{"function": "my_rewards:short"}]})) == []


@pytest.mark.parametrize(
    ("changes", "where", "message"),
    [
        (
            {"options": {"function": "my_rewards:scor"}},
            "task.options.function",
            "there is no function 'scor'",
        ),
        ({"options": {"function": "my_rewards"}}, "task.options.function", "write it as module:function"),
        ({"options": {"function": None}}, "task.options.function", "name the verifier"),
        ({"options": {"function": "my_rewards:broken"}}, "task.options.function", "returned None"),
        ({"options": {"data": None}}, "task.options", "name the data"),
        ({"options": {"data": "nowhere.jsonl"}}, "task.options", "there is no file nowhere.jsonl"),
        (
            {"options": {"prompt_field": "question"}},
            "task.options",
            "data.jsonl:1: there is no field 'question'",
        ),
        ({"reward": {"shaping": [{"function": "my_rewards:broken"}]}}, "reward.shaping", "returned None"),
        ({"prompts": 70}, "model.max_context_tokens", "the longest prompt has 70 tokens"),
    ],
)
def test_a_mistake_in_a_user_defined_task_is_one_line(
    here: Path, changes: dict[str, Any], where: str, message: str
) -> None:
    problem = only_problem(python_run(here, **changes))
    assert problem.where == where
    assert message in str(problem)
    assert "\n" not in str(problem)


def test_repeated_prompts_are_a_note_and_not_a_problem(here: Path) -> None:
    config = python_run(here)
    assert task_notes(config) == ()
    with (here / "data.jsonl").open("a") as file:
        file.write('{"prompt": "3 + 3?", "answer": "6"}\n')
    assert preflight(config) == []
    (note,) = task_notes(config)
    assert note.endswith("1 of 31 rows repeat an earlier prompt and are left out, the first is data.jsonl:31")
    assert task_notes(run_config(here)) == ()


def test_an_unreachable_service_is_one_line(here: Path) -> None:
    config = python_run(here)
    options = {"data": config.task.options["data"], "url": "http://127.0.0.1:9/score"}
    problem = only_problem(config.model_copy(update={"task": TaskConfig(name="http", options=options)}))
    assert problem.where == "task.options.url"
    assert "http://127.0.0.1:9/score cannot be reached" in problem.what


def test_the_number_of_prompts_that_are_too_long_is_reported(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_checks, "_prompt_tokens", lambda *_: [10, 64, 65, 100])
    problem = only_problem(python_run(here))
    assert "the longest prompt has 100 tokens" in problem.what
    assert "(2 of 4 prompts do not fit)" in problem.what
    assert problem.fix == "raise it to 164 or more, or drop long prompts (max_prompt_characters)"


@pytest.mark.parametrize(
    ("rollout", "needed"),
    [
        ({}, 4),
        ({"max_staleness": 1}, 8),
        ({"max_staleness": 1, "oversampling": 1.5}, 6),
        ({"dynamic_sampling_limit": 3}, 12),
        ({"max_staleness": 1, "dynamic_sampling_limit": 3}, 16),
    ],
)
def test_an_informative_selection_needs_a_training_prompt_for_each_that_is_in_flight(
    tmp_path: Path, rollout: dict[str, Any], needed: int
) -> None:
    """Dropped prompts count until their batch is complete. The limit is exact."""

    def run(prompts: int, selection: str) -> RunConfig:
        task = {"selection": selection, "options": {"train_puzzles": prompts, "eval_puzzles": 4}}
        return run_config(tmp_path, rollout=rollout, task=task)

    assert preflight(run(needed, "informative")) == preflight(run(1, "uniform")) == []
    problem = only_problem(run(needed - 1, "informative"))
    assert problem.where == "task.selection"
    assert f"up to {needed} are in flight" in problem.what
    assert f"the training split has {needed - 1}" in problem.what
    assert "set it to uniform" in problem.fix


def test_a_misspelled_shaping_setting_is_recognized(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("reward:\n  shaping:\n    - {function: 'a:b', wieght: 2}\n")
    (problem,) = load_config(file, []).problems
    assert problem.where == "reward.shaping.0.wieght"
    assert problem.fix == "did you mean weight?"


def test_a_task_is_looked_at_once_for_all_configurations_that_differ_in_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else is set, the problems are those of the task that is configured."""
    looked: list[RunConfig] = []
    check_task = task_checks.check_task

    def noted(config: RunConfig) -> Iterator[Problem]:
        looked.append(config)
        return check_task(config)

    monkeypatch.setattr(task_checks, "check_task", noted)
    check = task_checks.once_per_task()
    tasks = [{"train_puzzles": 8}, {"train_puzzles": 9}, {"number_max": 0}, {"train_puzzles": 10**9}]
    others = [
        {},
        {"learner": {"learning_rate": 1e-3}, "objective": {"name": "grpo"}, "name": "other", "steps": 3},
        {"evaluation": {"prompts": 3}, "checkpoint": {"keep": 5}, "tracking": {"wandb": "disabled"}},
    ]
    for other in others:
        for options in tasks:
            config = run_config(tmp_path, task={"name": "countdown", "options": options}, **other)
            assert list(check(config)) == list(check_task(config))
    assert len(looked) == len(tasks)
    for change in ({"rollout": {"max_response_tokens": 250}}, {"model": {"max_context_tokens": 20}}):
        config = run_config(tmp_path, task={"name": "countdown", "options": tasks[0]}, **change)
        assert list(check(config)) == list(check_task(config))
