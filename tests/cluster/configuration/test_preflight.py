"""What is wrong with a run is found before anything starts: each mistake alone, several together, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.configuration import preflight as preflight_module
from cluster.configuration.loading import load_config
from cluster.configuration.preflight import (
    check_context,
    check_prefix_sharing,
    check_resources,
    preflight,
    task_notes,
)
from cluster.core.config import RunConfig, TaskConfig
from cluster.core.problem import Problem
from cluster.models.starter import prompt_tokens
from learner.objective.objectives import OBJECTIVES
from reward.tasks.countdown.starter import ANSWER_TAGS, COMPACT_CHARACTERS, STARTER
from reward.tasks.countdown.task import CountdownOptions, CountdownTask
from reward.tasks.telelogs import starter as telelogs_starter
from reward.tasks.telelogs.task import TeleLogsOptions, TeleLogsTask


@pytest.fixture(autouse=True)
def _this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four CPUs, no GPU, no cluster and no hub, whatever runs the tests."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def run_config(directory: Path, **sections: Any) -> RunConfig:
    """A sound little run, with changes: `rollout={"workers": 9}` or `steps=3`."""
    values: dict[str, Any] = {
        "directory": str(directory),
        "model": {"max_context_tokens": 128},
        "rollout": {"workers": 1, "prompts_per_step": 4, "max_response_tokens": 64},
    }
    for name, change in sections.items():
        values[name] = {**values.get(name, {}), **change} if isinstance(change, dict) else change
    return RunConfig.model_validate(values)


def only_problem(config: RunConfig) -> Problem:
    problems = preflight(config)
    assert len(problems) == 1, "\n".join(map(str, problems))
    return problems[0]


def test_a_sound_run_has_no_problems(tmp_path: Path) -> None:
    assert preflight(run_config(tmp_path)) == []


def test_all_mistakes_are_found_together(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = run_config(
        tmp_path / "file" / "runs",
        model={"source": "no/where/at/all"},
        task={"options": {"numbrs": 3}},
        rollout={"workers": 9, "gpus_per_worker": 1},
        learner={"mini_batches": 3},
    )
    assert sorted(problem.where for problem in preflight(config)) == [
        "cluster",
        "cluster",
        "directory",
        "model.source",
        "rollout.prompts_per_step",
        "task.options.numbrs",
    ]


# --- Arithmetic


@pytest.mark.parametrize(("workers", "sound"), [(1, False), (2, True), (3, True), (4, False)])
def test_a_fleet_that_adapts_itself_starts_within_its_range(
    tmp_path: Path, workers: int, sound: bool
) -> None:
    rollout = {"workers": workers, "min_workers": 2, "max_workers": 3, "cpus_per_worker": 0.1}
    problems = preflight(run_config(tmp_path, rollout=rollout))
    assert [problem.where for problem in problems] == ([] if sound else ["rollout.workers"])


@pytest.mark.parametrize(("oversampling", "sound"), [(1.0, True), (1.25, True), (2.0, True), (2.25, False)])
def test_no_more_are_in_flight_than_staleness_allows(
    tmp_path: Path, oversampling: float, sound: bool
) -> None:
    rollout = {"max_staleness": 1, "oversampling": oversampling}
    problems = preflight(run_config(tmp_path, rollout=rollout))
    assert [problem.where for problem in problems] == ([] if sound else ["rollout.oversampling"])


@pytest.mark.parametrize(("gpus", "sound"), [((0.0, 0.0), True), ((1.0, 1.0), True), ((0.0, 1.0), False)])
@pytest.mark.parametrize("transport", ["pull", "broadcast"])
def test_weights_are_broadcast_among_gpus_or_among_cpus(
    tmp_path: Path, transport: str, gpus: tuple[float, float], sound: bool
) -> None:
    rollout = {"weight_transport": transport, "gpus_per_worker": gpus[0]}
    problems = preflight(run_config(tmp_path, rollout=rollout, learner={"gpus_per_rank": gpus[1]}))
    found = [problem.where for problem in problems if problem.where != "cluster"]  # here are no GPUs
    assert found == ([] if sound or transport == "pull" else ["rollout.weight_transport"])


@pytest.mark.parametrize(
    ("rollout", "sound"),
    [({}, True), ({"max_staleness": 1}, False), ({"weight_transport": "broadcast"}, False)],
)
def test_engines_sleep_only_where_nobody_needs_them(
    tmp_path: Path, rollout: dict[str, Any], sound: bool
) -> None:
    problems = preflight(run_config(tmp_path, rollout=rollout | {"sleep_while_learning": True}))
    assert [problem.where for problem in problems] == ([] if sound else ["rollout.sleep_while_learning"])


@pytest.mark.parametrize(("timeout_s", "sound"), [(59.0, True), (60.0, False)])
def test_a_response_is_cut_off_before_its_worker_is_replaced(
    tmp_path: Path, timeout_s: float, sound: bool
) -> None:
    rollout = {"response_timeout_s": timeout_s, "request_timeout_s": 60.0}
    problems = preflight(run_config(tmp_path, rollout=rollout))
    assert [problem.where for problem in problems] == ([] if sound else ["rollout.response_timeout_s"])


@pytest.mark.parametrize(
    ("prompts", "mini_batches", "sound"), [(4, 3, False), (4, 8, False), (4, 2, True), (6, 3, True)]
)
def test_a_batch_divides_into_its_mini_batches(
    tmp_path: Path, prompts: int, mini_batches: int, sound: bool
) -> None:
    config = run_config(
        tmp_path, rollout={"prompts_per_step": prompts}, learner={"mini_batches": mini_batches}
    )
    if sound:
        assert preflight(config) == []
    else:
        assert only_problem(config).where == "rollout.prompts_per_step"


# --- The objective


@pytest.mark.parametrize(
    ("misspelt", "meant"), [("gpso", "gspo"), ("drgrpo", "dr_grpo"), ("ahpo", "a_hpo"), ("Sapo", "sapo")]
)
def test_a_misspelt_objective_is_recognized(tmp_path: Path, misspelt: str, meant: str) -> None:
    problem = only_problem(run_config(tmp_path, objective={"name": misspelt}))
    assert problem.where == "objective.name"
    assert problem.fix.startswith(f"did you mean {meant}? ")


def test_an_unknown_objective_is_answered_with_all_known_names(tmp_path: Path) -> None:
    problem = only_problem(run_config(tmp_path, objective={"name": "unheard-of"}))
    assert problem.where == "objective.name"
    assert "'unheard-of'" in problem.what
    assert problem.fix.endswith("known objectives: grpo, dr_grpo, dapo, gspo, sapo, cispo, hpo, a_hpo")


@pytest.mark.parametrize(
    ("objective", "setting"),
    [
        ({"name": "sapo", "clip_low": 0.2}, "clip_low"),
        ({"name": "sapo", "clip_high": 0.2}, "clip_high"),
        ({"name": "a_hpo", "alpha": 0.6}, "alpha"),
        ({"name": "grpo", "alpha": 0.6}, "alpha"),
        ({"name": "hpo", "alpha_min": 0.2}, "alpha_min"),
        ({"kl_estimator": "k3"}, "kl_estimator"),
        ({"kl_estimator": "k1", "kl_coefficient": 0}, "kl_estimator"),
        ({"importance_level": "sequence"}, "importance_level"),
        ({"overlong_tokens": 65}, "overlong_tokens"),
    ],
)
def test_a_setting_that_would_not_be_heeded_is_refused(
    tmp_path: Path, objective: dict[str, Any], setting: str
) -> None:
    problem = only_problem(run_config(tmp_path, objective=objective))
    assert problem.where == f"objective.{setting}"
    assert "\n" not in str(problem)


@pytest.mark.parametrize(
    "objective",
    [
        {"name": "cispo", "clip_low": 0.2, "clip_high": 3.0},
        {"name": "hpo", "alpha": 0.5},
        {"name": "a_hpo", "alpha_min": 0.2},
        {"kl_coefficient": 0.1, "kl_estimator": "k1"},
        {"importance_cap": 2, "importance_level": "sequence"},
        {"overlong_tokens": 64},
        *({"name": name} for name in OBJECTIVES),
    ],
)
def test_settings_that_are_heeded_are_not_refused(tmp_path: Path, objective: dict[str, Any]) -> None:
    config = run_config(tmp_path, objective=objective)
    assert preflight(config) == []
    assert preflight(RunConfig.model_validate(config.model_dump())) == [], "as its own config.yaml says it"


# --- The task and its prompts


def longest_starter_prompt() -> int:
    task = CountdownTask(CountdownOptions())
    return max(
        prompt_tokens(task.render(problem)) for split in ("train", "eval") for problem in task.problems(split)
    )


def test_the_longest_prompt_and_a_response_must_fit_into_the_context(tmp_path: Path) -> None:
    """To the token."""
    needed = longest_starter_prompt() + 64
    assert preflight(run_config(tmp_path, model={"max_context_tokens": needed})) == []
    problem = only_problem(run_config(tmp_path, model={"max_context_tokens": needed - 1}))
    assert problem.where == "model.max_context_tokens"
    assert problem.fix == f"raise it to {needed} or more"


def test_a_response_longer_than_the_context_is_refused(tmp_path: Path) -> None:
    config = run_config(tmp_path, rollout={"max_response_tokens": 128})
    assert "rollout.max_response_tokens" in [problem.where for problem in preflight(config)]


def test_a_context_longer_than_the_model_can_take_is_refused(tmp_path: Path) -> None:
    """VLLM would not start: the starter's positions end at its `max_tokens`."""
    assert preflight(run_config(tmp_path, model={"max_context_tokens": STARTER.recipe.max_tokens})) == []
    problem = only_problem(run_config(tmp_path, model={"max_context_tokens": STARTER.recipe.max_tokens + 1}))
    assert problem.where == "model.max_context_tokens"
    assert str(STARTER.recipe.max_tokens) in str(problem)


def test_the_starters_prompts_are_measured_as_its_tokenizer_cuts_them() -> None:
    """`check` counts characters, because the model may not have been built yet."""
    from learner.model.supervised import character_tokenizer

    tokenizer = character_tokenizer(COMPACT_CHARACTERS, ANSWER_TAGS, STARTER.recipe.max_tokens)
    task = CountdownTask(CountdownOptions())
    for problem in task.problems("eval"):
        prompt = task.render(problem)
        assert prompt_tokens(prompt) == len(tokenizer(prompt).input_ids)


def test_prompts_of_a_model_that_is_there_are_measured_with_its_tokenizer(tmp_path: Path) -> None:
    """Here one that puts a token of its own before every text."""
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


def test_the_starter_is_asked_in_its_own_style(tmp_path: Path) -> None:
    problem = only_problem(run_config(tmp_path, task={"options": {"style": "chat"}}))
    assert "task.options.style" in problem.what


COMPACT_TELELOGS = {"style": "compact", "train_problems": 8, "eval_problems": 4}


def test_telelogs_has_a_starter_that_takes_longer_prompts(tmp_path: Path) -> None:
    """To the token, as its tokenizer cuts them; and no longer than its own limit, which is not Countdown's."""
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


def test_data_that_cannot_be_read_are_found_before_a_run(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"question": "q", "answer": "C9"}')
    task = {"name": "telelogs", "options": {"data": str(data)}}
    problems = preflight(run_config(tmp_path, task=task))
    assert {str(problem) for problem in problems} == {
        "task.options: rows.jsonl:1: the answer 'C9' is not one of C1 … C8; change the task's options"
    }


def test_an_unknown_task_is_told_the_known_ones(tmp_path: Path) -> None:
    problems = preflight(run_config(tmp_path, task={"name": "countdwn"}))
    assert problems[-1].where == "task.name"
    assert "countdown" in problems[-1].fix


def test_a_misspelt_task_option_is_recognised(tmp_path: Path) -> None:
    problem = only_problem(run_config(tmp_path, task={"options": {"nubmers": 3}}))
    assert (problem.where, problem.fix) == ("task.options.nubmers", "did you mean numbers?")


def test_a_space_without_puzzles_is_found_for_both_splits(tmp_path: Path) -> None:
    options = {"target_min": 5000, "target_max": 5000}
    problems = preflight(run_config(tmp_path, task={"options": options}))
    assert [problem.where for problem in problems] == ["task.options"] * 2
    assert {word for problem in problems for word in problem.what.split()} >= {"train", "eval", "empty"}


def test_more_puzzles_than_there_are_is_found(tmp_path: Path) -> None:
    problem = only_problem(run_config(tmp_path, task={"options": {"eval_puzzles": 10**6}}))
    assert "there are only" in problem.what


@pytest.mark.parametrize("options", [{"number_min": 9, "number_max": 3}, {"target_min": 9, "target_max": 3}])
def test_a_mistake_that_hits_both_splits_is_said_once(tmp_path: Path, options: dict[str, int]) -> None:
    assert only_problem(run_config(tmp_path, task={"options": options})).where == "task.options"


def test_a_space_too_large_to_list_is_told_which_setting_to_give(tmp_path: Path) -> None:
    problems = preflight(run_config(tmp_path, task={"options": {"numbers": 6}}))
    assert {problem.where.split(".")[0] for problem in problems} == {"task"}
    for setting in ("train_puzzles", "eval_puzzles"):
        assert any(setting in str(problem) for problem in problems)


# --- The machine


# --- a task of the user's own


def python_run(directory: Path, prompts: int = 30, **changes: Any) -> RunConfig:
    """A run on a data set and a verifier in `directory`, with a model whose prompts cannot be measured yet."""
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
    """The working directory, where users' modules are; no prompt is measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "cluster.configuration.preflight._prompt_tokens", lambda config, task, problems: [len(problems)]
    )
    return tmp_path


def test_a_verifier_of_the_users_own_is_found_in_the_working_directory(here: Path) -> None:
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
def test_what_is_wrong_with_it_is_one_line(
    here: Path, changes: dict[str, Any], where: str, message: str
) -> None:
    problem = only_problem(python_run(here, **changes))
    assert problem.where == where
    assert message in str(problem)
    assert "\n" not in str(problem)


def test_prompts_that_come_twice_are_a_note_and_no_mistake(here: Path) -> None:
    config = python_run(here)
    assert task_notes(config) == ()
    with (here / "data.jsonl").open("a") as file:
        file.write('{"prompt": "3 + 3?", "answer": "6"}\n')
    assert preflight(config) == []
    (note,) = task_notes(config)
    assert note.endswith("1 of 31 rows repeat an earlier prompt and are left out, the first is data.jsonl:31")
    assert task_notes(run_config(here)) == ()


def test_a_service_that_is_not_there_is_one_line(here: Path) -> None:
    config = python_run(here)
    options = {"data": config.task.options["data"], "url": "http://127.0.0.1:9/judge"}
    problem = only_problem(config.model_copy(update={"task": TaskConfig(name="http", options=options)}))
    assert problem.where == "task.options.url"
    assert "http://127.0.0.1:9/judge cannot be reached" in problem.what


def test_how_many_prompts_are_too_long_is_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight_module, "_prompt_tokens", lambda *_: [10, 64, 65, 100])
    problem = only_problem(python_run(here))
    assert "the longest prompt has 100 tokens" in problem.what
    assert "(2 of 4 prompts do not)" in problem.what
    assert problem.fix == "raise it to 164 or more, or leave long prompts out (max_prompt_characters)"


def test_a_misspelt_shaping_setting_is_recognised(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("reward:\n  shaping:\n    - {function: 'a:b', wieght: 2}\n")
    (problem,) = load_config(file, []).problems
    assert problem.where == "reward.shaping.0.wieght"
    assert problem.fix == "did you mean weight?"


def test_more_cpus_than_the_machine_has(tmp_path: Path) -> None:
    problem = only_problem(run_config(tmp_path, rollout={"cpus_per_worker": 3}))
    assert "asks for 4.5 CPUs" in problem.what
    assert "this machine has 4" in problem.what


tenths = st.integers(1, 9)


@example(workers=1, ranks=3, cpus_per_worker=7, cpus_per_rank=8)
@given(workers=st.integers(1, 9), ranks=st.integers(1, 9), cpus_per_worker=tenths, cpus_per_rank=tenths)
def test_just_as_many_cpus_as_there_are_will_do(
    workers: int, ranks: int, cpus_per_worker: int, cpus_per_rank: int
) -> None:
    """Fractions are counted as a person does: 3 × 0.1 + 0.7 is 1. The reward actors take what the others leave."""
    left = 40 - workers * cpus_per_worker - ranks * cpus_per_rank
    sections: dict[str, Any] = {
        "rollout": {"workers": workers, "cpus_per_worker": cpus_per_worker / 10},
        "learner": {"ranks": ranks, "cpus_per_rank": cpus_per_rank / 10},
    }
    if left >= 0:
        assert (
            list(check_resources(run_config(Path(), **sections, reward={"cpus_per_worker": left / 10}))) == []
        )
    assert list(
        check_resources(run_config(Path(), **sections, reward={"cpus_per_worker": (max(left, 0) + 1) / 10}))
    )


def test_only_actors_that_will_run_are_counted(tmp_path: Path) -> None:
    """An evaluation has no learner, an export nothing else."""
    config = run_config(tmp_path, rollout={"cpus_per_worker": 3}, learner={"ranks": 9, "gpus_per_rank": 1})
    assert preflight(config, ["rollout", "reward"]) == []
    cpus, gpus = check_resources(config, ["learner"])
    assert "asks for 9 CPUs (learner.ranks × cpus_per_rank)" in cpus.what
    assert "asks for 9 GPUs" in gpus.what
    config = run_config(tmp_path, rollout={"gpus_per_worker": 1})
    assert len(preflight(config, ["rollout", "reward"])) == 1
    assert list(check_resources(config, ["learner"])) == []


@pytest.mark.parametrize(
    ("visible", "gpus"), [("", 0), ("-1", 0), ("0", 1), ("0,1,2", 3), ("GPU-5ab,GPU-6cd", 2)]
)
def test_gpus_are_those_that_are_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, gpus: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if gpus:
        assert preflight(run_config(tmp_path, learner={"gpus_per_rank": gpus})) == []
    problem = only_problem(run_config(tmp_path, learner={"gpus_per_rank": gpus + 1}))
    assert f"asks for {gpus + 1} GPUs, this machine has {gpus}" in problem.what


@pytest.mark.parametrize("where", ["environment", "configuration"])
def test_a_cluster_is_not_measured_by_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "environment":
        monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    cluster = {"address": "head:6379"} if where == "configuration" else {}
    many = {"workers": 100, "gpus_per_worker": 8}
    assert preflight(run_config(tmp_path, rollout=many, cluster=cluster)) == []


def test_nodes_are_chosen_only_where_there_are_several(tmp_path: Path) -> None:
    labels = {"rollout": {"pool": "spot"}}
    problem = only_problem(run_config(tmp_path, cluster={"node_labels": labels}))
    assert problem.where == "cluster.node_labels"
    assert preflight(run_config(tmp_path, cluster={"node_labels": labels, "address": "head:6379"})) == []


# --- The model


@pytest.mark.parametrize(
    "source", ["nowhere", "./nowhere", "no/where/at/all", "nowhere.gguf", "package:nowhere/x.gguf"]
)
def test_a_model_that_is_not_there(tmp_path: Path, source: str) -> None:
    problem = only_problem(run_config(tmp_path, model={"source": source}))
    assert problem.where == "model.source"
    assert "nowhere" in problem.what or source in problem.what


def directory_model(tmp_path: Path, known: Any) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(known))
    return directory


@pytest.mark.parametrize("more", [0, 1])
def test_a_context_longer_than_the_model_takes(tmp_path: Path, more: int) -> None:
    """To the token; vLLM would refuse it a minute later."""
    model = directory_model(tmp_path, {"max_position_embeddings": 512})
    config = run_config(tmp_path, model={"source": str(model), "max_context_tokens": 512 + more})
    problems = list(check_context(config))
    assert len(problems) == more
    for problem in problems:
        assert problem.where == "model.max_context_tokens"
        assert "more than the 512" in problem.what
        assert str(model) in problem.what
        assert problem.fix == "lower it to 512"
        assert problem in preflight(config)


@pytest.mark.parametrize(
    "known",
    [
        {},
        [],
        {"max_position_embeddings": None},
        {"max_position_embeddings": 128, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"max_position_embeddings": 128, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        {"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        {"max_position_embeddings": 4096, "rope_scaling": None},
    ],
)
def test_a_context_that_may_fit_is_not_refused(tmp_path: Path, known: Any) -> None:
    model = directory_model(tmp_path, known)
    config = run_config(tmp_path, model={"source": str(model), "max_context_tokens": 512})
    assert list(check_context(config)) == []


@pytest.mark.parametrize(
    ("known", "fit"),
    [
        ({"model_type": "llama"}, True),
        ({"model_type": "mistral", "sliding_window": 512}, True),
        ({"model_type": "mistral", "sliding_window": 511}, False),
        ({"model_type": "jamba", "mamba_d_state": 16}, False),
        ([], True),
    ],
)
@pytest.mark.parametrize("sharing", ["auto", "on", "off"])
def test_prefix_sharing_is_refused_for_models_that_cannot(
    tmp_path: Path, known: Any, fit: bool, sharing: str
) -> None:
    """If it was asked for: `auto` does without."""
    source = {"source": str(directory_model(tmp_path, known)), "max_context_tokens": 512}
    config = run_config(tmp_path, model=source, learner={"prefix_sharing": sharing})
    problems = list(check_prefix_sharing(config))
    assert len(problems) == (0 if fit or sharing != "on" else 1)
    for problem in problems:
        assert problem.where == "learner.prefix_sharing"
        assert problem.fix == "set it to auto or off"
        assert problem in preflight(config)


# --- The run directory


def test_the_run_directory_need_not_exist_yet(tmp_path: Path) -> None:
    assert preflight(run_config(tmp_path / "not" / "yet")) == []
    assert list(tmp_path.iterdir()) == [], "checking leaves nothing behind"


def below_a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file" / "runs"


def a_file_in_its_place(tmp_path: Path) -> Path:
    (tmp_path / "run").touch()
    return tmp_path


@pytest.mark.parametrize(
    "place",
    [
        below_a_file,
        a_file_in_its_place,
        lambda _: Path("/proc/runs"),
        lambda _: Path("~nobody-of-this-name/runs"),
    ],
    ids=["below a file", "a file", "/proc", "no such home"],
)
def test_a_run_directory_that_cannot_be_written(tmp_path: Path, place: Any) -> None:
    assert only_problem(run_config(place(tmp_path))).where == "directory"


def test_a_name_too_long_for_a_directory(tmp_path: Path) -> None:
    try:
        config = run_config(tmp_path, name="n" * 300)
    except ValueError:
        return  # the schema may refuse it
    assert len(preflight(config)) == 1


# --- The environment


@pytest.mark.parametrize(("package", "where"), [("vllm", "environment"), ("wandb", "tracking.wandb")])
def test_a_missing_package_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, where: str
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else real(name, *rest)
    )
    problem = only_problem(run_config(tmp_path))
    assert problem.where == where
    assert package in problem.what


def test_wandb_need_not_be_there_when_it_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else real(name, *rest)
    )
    assert preflight(run_config(tmp_path, tracking={"wandb": "disabled"})) == []
