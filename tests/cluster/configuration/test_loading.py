"""From files and overrides to a configuration: a mistake is a line with its place and its fix, and never raises."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.configuration.loading import Loaded, load_config, validate
from cluster.configuration.messages import setting_names
from cluster.core.config import RewardConfig, RunConfig
from cluster.core.problem import Problem
from tests import PROJECT

SETTINGS = list(setting_names(RunConfig))
SECTIONS = sorted({name.rpartition(".")[0] for name in SETTINGS})


def load(tmp_path: Path, text: str, *overrides: str) -> Loaded:
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return load_config(file, overrides)


def nested(dotted: str, value: Any) -> dict[str, Any]:
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return value


def only_problem(dotted: str, value: Any = 1) -> Problem:
    """Of a configuration that sets nothing else."""
    _, problems = validate(RunConfig, nested(dotted, value))
    assert len(problems) == 1
    return problems[0]


RUNS = sorted(set((PROJECT / "configs").glob("*.yaml")) - set((PROJECT / "configs").glob("compare_*.yaml")))


@pytest.mark.parametrize("file", RUNS, ids=lambda file: file.name)
def test_the_configurations_we_ship_are_in_order(file: Path) -> None:
    loaded = load_config(file)
    assert loaded.problems == ()
    assert loaded.config.name != RunConfig().name, "they would share a run directory"


def test_there_are_fewer_than_a_hundred_settings() -> None:
    assert 10 < len(SETTINGS) < 100


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "") == Loaded(RunConfig(), ())


def test_what_the_file_says_is_read(tmp_path: Path) -> None:
    loaded = load(tmp_path, "steps: 7\nrollout: {workers: 3}\nlearner: {learning_rate: 1e-4}\n")
    assert loaded == Loaded(
        RunConfig.model_validate({"steps": 7, "rollout": {"workers": 3}, "learner": {"learning_rate": 1e-4}}),
        (),
    )


@pytest.mark.parametrize("word", ["on", "off", "auto"])
def test_on_and_off_are_words_for_a_setting_that_knows_them(tmp_path: Path, word: str) -> None:
    for loaded in (
        load(tmp_path, f"learner: {{prefix_sharing: {word}}}\n"),
        load(tmp_path, "", f"learner.prefix_sharing={word}"),
    ):
        assert loaded.problems == ()
        assert loaded.config.learner.prefix_sharing == word


def test_overrides_win_and_the_last_of_them_most(tmp_path: Path) -> None:
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


def test_a_misspelt_setting_is_recognised() -> None:
    """With a letter too many in its middle, and with one too few."""
    for section, _, leaf in (name.rpartition(".") for name in SETTINGS):
        middle = len(leaf) // 2
        for misspelt in (leaf[:middle] + leaf[middle] + leaf[middle:], leaf[:middle] + leaf[middle + 1 :]):
            where = f"{section}.{misspelt}".lstrip(".")
            assert only_problem(where) == Problem(where, "there is no such setting", f"did you mean {leaf}?")


def test_a_setting_in_the_wrong_section_is_told_its_place() -> None:
    """Whatever else is suggested, a setting that is spelt exactly so is."""
    for section, leaf in itertools.product(SECTIONS, sorted({name.rpartition(".")[2] for name in SETTINGS})):
        wrong = f"{section}.{leaf}".lstrip(".")
        if wrong not in SETTINGS:
            right = {setting for setting in SETTINGS if setting.rpartition(".")[2] == leaf}
            problem = only_problem(wrong)
            assert right & set(re.findall(r"[\w.]*\w", problem.fix)), problem


def test_a_setting_like_no_other_is_answered_with_those_there_are() -> None:
    problem = only_problem("reward.qqq")
    assert problem.fix == f"known here: {', '.join(RewardConfig.model_fields)}"


def test_a_misspelt_section_is_recognised() -> None:
    assert only_problem("rolout", {"workers": 3}).fix == "did you mean rollout?"


@pytest.mark.parametrize(
    ("setting", "value", "needle"),
    [
        ("steps", 0, "greater than or equal to 1"),
        ("steps", 2.5, "integer"),
        ("rollout.responses_per_prompt", 1, "greater than or equal to 2"),
        ("rollout.temperature", 0, "greater than 0"),
        ("learner.max_logprob_gap", float("nan"), "greater than 0"),
        ("objective.alpha", 1.5, "less than or equal to 1"),
        ("learner.lr_schedule", "step", "'constant', 'linear' or 'cosine'"),
        ("objective.importance_cap", "much", "number"),
        ("name", "../other", "pattern"),
        ("tracking.wandb_tags", ["a", ["b"]], "string"),
        ("rollout", None, "dictionary"),
        ("rollout", 3, "dictionary"),
    ],
)
def test_an_impossible_value_is_named_with_what_would_do(setting: str, value: Any, needle: str) -> None:
    problem = only_problem(setting, value)
    assert problem.where.startswith(setting)
    assert needle in problem.fix


@pytest.mark.parametrize(
    ("setting", "misspelt", "meant"),
    [
        ("learner.lr_schedule", "cosin", "cosine"),
        ("learner.lr_schedule", "Linear", "linear"),
        ("rollout.on_new_weights", "finsih", "finish"),
        ("objective.advantage_scaling", "bacth", "batch"),
    ],
)
def test_a_misspelt_choice_is_recognised(setting: str, misspelt: str, meant: str) -> None:
    assert only_problem(setting, misspelt).fix.startswith(f"did you mean {meant}? ")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("steps", True), ("steps", "3"), ("learner.gradient_checkpointing", 1), ("name", 3)],
)
def test_values_are_not_coerced_from_other_types(setting: str, value: Any) -> None:
    """As `cluster.core.config.Section` says; `steps: yes` is not one step."""
    assert only_problem(setting, value).where == setting


def test_a_whole_number_will_do_where_a_fraction_may_stand() -> None:
    config, problems = validate(RunConfig, {"rollout": {"temperature": 1, "kv_cache_gib": 2}})
    assert problems == []
    assert config.rollout.kv_cache_gib == 2.0


def test_what_is_wrong_is_set_aside_and_the_rest_kept(tmp_path: Path) -> None:
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
def test_a_file_that_is_not_there_is_one_problem(tmp_path: Path, name: str) -> None:
    (problem,) = load_config(tmp_path / name).problems
    assert problem.where == str(tmp_path / name)


def test_an_interpolation_that_leads_nowhere_hides_nothing_else(tmp_path: Path) -> None:
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
    """And what is kept is in order. Compared as text, in which a NaN equals itself."""
    config, problems = validate(RunConfig, values)
    assert repr(RunConfig.model_validate(config.model_dump())) == repr(config)
    assert problems or repr(RunConfig.model_validate(values)) == repr(config)


@pytest.mark.parametrize("key", ["1", "1.5", "yes", "null"])
@pytest.mark.parametrize("text", ["KEY: 1\n", "rollout: {KEY: 1}\n", "rollout: {workers: {KEY: 1}}\n"])
def test_a_key_that_yaml_does_not_take_for_text_is_one_problem(tmp_path: Path, key: str, text: str) -> None:
    assert len(load(tmp_path, text.replace("KEY", key)).problems) == 1


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(SETTINGS) | st.text(max_size=8),
    value=st.text(alphabet="0aeyn.-_[]{}:,'\"$?!&*#|> \n\t", max_size=8),
)
def test_no_override_makes_loading_raise(tmp_path: Path, key: str, value: str) -> None:
    load_config(PROJECT / "configs" / "demo.yaml", [f"{key}={value}"])


@given(st.text(), st.text(), st.text())
def test_a_problem_is_one_line(where: str, what: str, fix: str) -> None:
    assert len(str(Problem(where, what, fix)).splitlines()) == 1
