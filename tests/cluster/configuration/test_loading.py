"""A file and overrides are loaded as a configuration. Each mistake is one line with its place, and never an error."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from cluster.configuration.loading import Loaded, load_config, validate
from cluster.configuration.messages import setting_names
from cluster.core.config import RewardConfig, RunConfig
from cluster.core.problem import Problem
from cluster.core.schema import Section
from reward.registry import task_class, task_names
from tests import PROJECT

SETTINGS = list(setting_names(RunConfig))
SECTIONS = sorted({name.rpartition(".")[0] for name in SETTINGS})


def load(tmp_path: Path, text: str, *overrides: str) -> Loaded:
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return load_config(file, overrides)


def nested(dotted: str, value: Any) -> dict[str, Any]:
    """Return a configuration that sets only this."""
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return value


def only_problem(dotted: str, value: Any = 1) -> Problem:
    """Return the problem of a configuration that sets only this."""
    _, problems = validate(RunConfig, nested(dotted, value))
    assert len(problems) == 1
    return problems[0]


RUNS = sorted(set((PROJECT / "configs").glob("*.yaml")) - set((PROJECT / "configs").glob("compare_*.yaml")))


@pytest.mark.parametrize("file", RUNS, ids=lambda file: file.name)
def test_the_shipped_configurations_are_valid(file: Path) -> None:
    loaded = load_config(file)
    assert loaded.problems == ()
    assert loaded.config.name != RunConfig().name, "two configurations would share a run directory"


def test_there_are_few_settings() -> None:
    assert 10 < len(SETTINGS) < 110


def test_an_empty_file_has_all_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "") == Loaded(RunConfig(), ())


def test_the_settings_of_the_file_are_read(tmp_path: Path) -> None:
    loaded = load(tmp_path, "steps: 7\nrollout: {workers: 3}\nlearner: {learning_rate: 1e-4}\n")
    assert loaded == Loaded(
        RunConfig.model_validate({"steps": 7, "rollout": {"workers": 3}, "learner": {"learning_rate": 1e-4}}),
        (),
    )


@pytest.mark.parametrize("word", ["on", "off", "auto"])
def test_on_and_off_are_words_for_a_setting_that_accepts_them(tmp_path: Path, word: str) -> None:
    for loaded in (
        load(tmp_path, f"learner: {{prefix_sharing: {word}}}\n"),
        load(tmp_path, "", f"learner.prefix_sharing={word}"),
    ):
        assert loaded.problems == ()
        assert loaded.config.learner.prefix_sharing == word


def test_overrides_take_precedence_and_the_last_one_wins(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        "steps: 7\nrollout: {workers: 3, temperature: 0.5}\n",
        "rollout.workers=4",
        "rollout.workers=5",
        "objective.importance_cap=null",
        "tracking.wandb_tags=[a,b]",
        "task.options.numbers=4",
        "model.source=some/where=else",
    )
    assert loaded.problems == ()
    config = loaded.config
    assert (config.steps, config.rollout.workers, config.rollout.temperature) == (7, 5, 0.5)
    assert config.objective.importance_cap is None
    assert config.tracking.wandb_tags == ("a", "b")
    assert config.task.options == {"numbers": 4}
    assert config.model.source == "some/where=else"


def test_a_misspelled_setting_is_recognized() -> None:
    """Settings with a doubled and with a missing letter in the middle are recognized."""
    for section, _, leaf in (name.rpartition(".") for name in SETTINGS):
        middle = len(leaf) // 2
        for misspelled in (leaf[:middle] + leaf[middle] + leaf[middle:], leaf[:middle] + leaf[middle + 1 :]):
            where = f"{section}.{misspelled}".lstrip(".")
            assert only_problem(where) == Problem(where, "there is no such setting", f"did you mean {leaf}?")


def test_a_setting_in_the_wrong_section_is_answered_with_its_section() -> None:
    """The suggestions include a setting of exactly this name."""
    for section, leaf in itertools.product(SECTIONS, sorted({name.rpartition(".")[2] for name in SETTINGS})):
        wrong = f"{section}.{leaf}".lstrip(".")
        if wrong not in SETTINGS:
            right = {setting for setting in SETTINGS if setting.rpartition(".")[2] == leaf}
            problem = only_problem(wrong)
            assert right & set(re.findall(r"[\w.]*\w", problem.fix)), problem


def test_an_unknown_setting_is_answered_with_all_settings_of_its_section() -> None:
    problem = only_problem("reward.qqq")
    assert problem.fix == f"known here: {', '.join(RewardConfig.model_fields)}"


def test_a_misspelled_section_is_recognized() -> None:
    assert only_problem("rolout", {"workers": 3}).fix == "did you mean rollout?"


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("steps", 0, "a number greater than or equal to 1, got 0"),
        ("steps", 2.5, "an integer, got 2.5"),
        ("steps", "abc", "an integer, got 'abc'"),
        ("rollout.responses_per_prompt", 1, "a number greater than or equal to 2, got 1"),
        ("rollout.temperature", 0, "a number greater than 0, got 0"),
        ("learner.max_logprob_gap", float("nan"), "a finite number, got nan"),
        ("objective.alpha", 1.5, "a number less than or equal to 1, got 1.5"),
        ("learner.lr_schedule", "step", "'constant', 'linear' or 'cosine', got 'step'"),
        ("learner.zero_stage", 4, "0, 1, 2 or 3, got 4"),
        ("learner.gradient_checkpointing", 1, "true or false, got 1"),
        ("reward.truncated_is_incorrect", "maybe", "true or false, got 'maybe'"),
        ("objective.importance_cap", "much", "a number, got 'much'"),
        ("name", "../other", "text that matches the pattern ^[A-Za-z0-9][A-Za-z0-9._-]*$, got '../other'"),
        ("name", "n" * 101, "at most 100 characters, got "),
        ("name", 3, "text, got 3"),
        ("directory", 3, "a path, got 3"),
        ("tracking.wandb_tags", ["a", ["b"]], "text, got ['b']"),
        ("tracking.wandb_tags", "a", "a list, got 'a'"),
        ("task.options", 3, "a mapping, got 3"),
        ("rollout", None, "a mapping of settings, got None"),
        ("rollout", 3, "a mapping of settings, got 3"),
        ("reward.shaping", [{"function": "a:b", "weight": float("inf")}], "a finite number, got inf"),
        ("reward.shaping", [{}], "a value, got nothing"),
    ],
)
def test_an_invalid_value_is_reported_with_what_was_expected(setting: str, value: Any, expected: str) -> None:
    problem = only_problem(setting, value)
    assert problem.where.startswith(setting)
    assert problem.what.startswith(f"expected {expected}")


@pytest.mark.parametrize(
    ("setting", "misspelled", "meant"),
    [
        ("learner.lr_schedule", "cosin", "cosine"),
        ("learner.lr_schedule", "Linear", "linear"),
        ("rollout.on_new_weights", "finsih", "finish"),
        ("objective.advantage_scaling", "bacth", "batch"),
    ],
)
def test_a_misspelled_choice_is_recognized(setting: str, misspelled: str, meant: str) -> None:
    assert only_problem(setting, misspelled).fix == f"did you mean {meant}?"


@pytest.mark.parametrize(
    ("setting", "value"),
    [("steps", True), ("steps", "3"), ("learner.gradient_checkpointing", 1), ("name", 3)],
)
def test_values_are_not_coerced_from_other_types(setting: str, value: Any) -> None:
    """`steps: yes` is not one step, as `cluster.core.config.Section` promises."""
    assert only_problem(setting, value).where == setting


def test_an_integer_is_accepted_for_a_number() -> None:
    config, problems = validate(RunConfig, {"rollout": {"temperature": 1, "kv_cache_gib": 2}})
    assert problems == []
    assert config.rollout.kv_cache_gib == 2.0


def test_invalid_settings_get_their_defaults_and_the_rest_is_kept(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        "steps: 7\nstepps: 8\nrollout: {workers: none, temperature: 0.5}\ntracking: {wandb_tags: [a, [b]]}\n",
        "learner.ranks=0",
        "nonsense",
    )
    assert sorted(problem.where for problem in loaded.problems) == [
        "learner.ranks",
        "nonsense",
        "rollout.workers",
        "stepps",
        "tracking.wandb_tags.1",
    ]
    assert loaded.config == RunConfig.model_validate({"steps": 7, "rollout": {"temperature": 0.5}})


@pytest.mark.parametrize(
    ("content", "needle"),
    [
        (b"a: [1", "line 1, column 4"),
        (b"- a\n- b\n", "not a mapping"),
        (b"a: \xff", "utf-8"),
        (b"steps: 1\nsteps: 2\n", "duplicate key"),
        (b"a: \t\n\tb", "tab"),
    ],
    ids=["syntax", "list", "encoding", "duplicate", "tabs"],
)
def test_a_file_that_is_not_a_configuration_is_one_problem(
    tmp_path: Path, content: bytes, needle: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    (problem,) = load_config(file).problems
    assert problem.where == str(file)
    assert needle in problem.what or needle == "tab"


@pytest.mark.parametrize("name", ["none.yaml", ".", "none/such.yaml"])
def test_a_file_that_does_not_exist_is_one_problem(tmp_path: Path, name: str) -> None:
    (problem,) = load_config(tmp_path / name).problems
    assert problem.where == str(tmp_path / name)


def test_an_invalid_interpolation_hides_no_other_problem(tmp_path: Path) -> None:
    loaded = load(tmp_path, "name: ${nowhere}\nstepps: 8\nsteps: 7\n")
    assert any("nowhere" in problem.what for problem in loaded.problems)
    assert "stepps" in [problem.where for problem in loaded.problems]
    assert loaded.config.steps == 7


def test_an_interpolation_is_resolved(tmp_path: Path) -> None:
    assert load(tmp_path, "steps: 7\nseed: ${steps}\n") == Loaded(RunConfig(steps=7, seed=7), ())


@pytest.mark.parametrize(
    "override",
    ["rollout.workers=[1", "rollout.workers={", 'name="', "=4", "a..b=3", "rollout.=4", "steps.deep=3", "x"],
)
def test_a_malformed_override_is_one_problem(tmp_path: Path, override: str) -> None:
    (problem,) = load(tmp_path, "", override).problems
    assert problem.where.split(".")[0] in override


KEYS = st.sampled_from([*SECTIONS[1:], "steps", "directory", "workers", "options"]) | st.text(max_size=5)
TREES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=150)
@given(st.dictionaries(KEYS, TREES, max_size=4))
def test_no_tree_of_values_makes_validation_raise(values: dict[str, Any]) -> None:
    """The values that are kept are valid. They are compared as text, in which a NaN equals itself."""
    config, problems = validate(RunConfig, values)
    assert repr(RunConfig.model_validate(config.model_dump())) == repr(config)
    assert problems or repr(RunConfig.model_validate(values)) == repr(config)


@settings(max_examples=500)
@given(st.sampled_from(SETTINGS), TREES)
def test_a_value_of_any_shape_is_accepted_or_reported_under_its_setting(setting: str, value: Any) -> None:
    """A report is one line with the path of the setting."""
    values = nested(setting, value)
    config, problems = validate(RunConfig, values)
    assert repr(RunConfig.model_validate(config.model_dump())) == repr(config)
    assert all(problem.where.startswith(setting) for problem in problems)
    assert problems or repr(RunConfig.model_validate(values)) == repr(config)


def test_a_misspelled_role_is_one_problem_with_the_role_that_was_meant() -> None:
    labels = {"rolout": {"pool": 3}, "learner": {"pool": "reserved"}}
    config, problems = validate(RunConfig, {"cluster": {"node_labels": labels}})
    assert [str(problem) for problem in problems] == [
        "cluster.node_labels.rolout: expected 'rollout', 'learner' or 'reward', got 'rolout'; did you mean rollout?"
    ]
    assert config.cluster.node_labels == {"learner": {"pool": "reserved"}}


class _Pair(Section):
    """A section whose fields have no defaults."""

    left: int
    right: int


class _Pairs(Section):
    pair: _Pair = _Pair(left=1, right=2)
    pairs: dict[str, _Pair] = Field(default={})


@pytest.mark.parametrize("values", [{}, {"left": 3}, {"left": 3, "right": "x"}, {"left": 3, "middle": 4}])
def test_a_section_without_a_field_that_it_needs_gets_its_default(values: dict[str, Any]) -> None:
    config, problems = validate(
        _Pairs, {"pair": values, "pairs": {"a": values, "b": {"left": 5, "right": 6}}}
    )
    assert config == _Pairs(pairs={"b": _Pair(left=5, right=6)})
    assert {problem.where.split(".")[0] for problem in problems} == {"pair", "pairs"}


@pytest.mark.parametrize("task", task_names())
@settings(max_examples=100)
@given(data=st.data())
def test_options_of_any_shape_are_accepted_or_reported(task: str, data: st.DataObject) -> None:
    schema = task_class(task).Options
    values = data.draw(
        st.dictionaries(st.sampled_from(list(schema.model_fields)) | st.text(max_size=5), TREES)
    )
    options, problems = validate(schema, values, "task.options")
    assert repr(schema.model_validate(options.model_dump(exclude_unset=True))) == repr(options)
    assert all(problem.where.startswith("task.options") for problem in problems)
    assert problems or repr(schema.model_validate(values)) == repr(options)


@pytest.mark.parametrize("further", [{}, {"seed": "x"}])
def test_options_that_contradict_each_other_are_one_problem_of_the_section(further: dict[str, Any]) -> None:
    """A mistake in another option hides it as little as it hides that mistake."""
    schema = task_class("countdown").Options
    options, problems = validate(schema, {"data": "x.jsonl", "number_max": 3, **further}, "task.options")
    assert options == schema()
    assert [problem.where for problem in problems] == [
        *(["task.options.seed"] if further else []),
        "task.options",
    ]
    assert "do not apply to data" in problems[-1].what


class _Needy(Section):
    needed: int


def test_a_schema_without_defaults_is_no_endless_search() -> None:
    with pytest.raises(ValidationError):
        validate(_Needy, {"needed": "x"})


@pytest.mark.parametrize("key", ["1", "1.5", "yes", "null"])
@pytest.mark.parametrize("text", ["KEY: 1\n", "rollout: {KEY: 1}\n", "rollout: {workers: {KEY: 1}}\n"])
def test_a_key_that_is_not_a_string_in_yaml_is_one_problem(tmp_path: Path, key: str, text: str) -> None:
    assert len(load(tmp_path, text.replace("KEY", key)).problems) == 1


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(SETTINGS) | st.text(max_size=8),
    value=st.text(alphabet="0aeyn.-_[]{}:,'\"$?!&*#|> \n\t", max_size=8),
)
@example(key="task.options", value="-")
def test_no_override_makes_loading_raise(tmp_path: Path, key: str, value: str) -> None:
    load_config(PROJECT / "configs" / "demo.yaml", [f"{key}={value}"])


@given(st.text(), st.text(), st.text())
def test_a_problem_is_one_line(where: str, what: str, fix: str) -> None:
    assert len(str(Problem(where, what, fix)).splitlines()) == 1
