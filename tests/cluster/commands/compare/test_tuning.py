"""The tuning of a comparison: its plan, its runs, the choice of values, and what is reported of it."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.commands.compare.plan import Comparison, load_comparison
from cluster.commands.compare.run import OtherSettingsError
from cluster.commands.compare.tuning import choose
from cluster.metrics.run_measures import HEADLINES
from tests.cluster.commands.compare.test_compare import comparison_file, planned, run, starts
from tests.fake_training import train

TUNING = {"values": [0.25, 0.5], "seeds": [8, 9]}
VARIANTS = {"up": ["objective.name=grpo"], "down": ["objective.name=gspo"]}
"""The first variant is better with the higher learning rate, the second one with the lower one."""

SEEDS = (1, 2, 3)
grids = st.dictionaries(
    st.sampled_from([0.1, 0.2, 0.4, 0.8]),
    st.dictionaries(st.sampled_from(SEEDS), st.integers(0, 3).map(float), min_size=2, max_size=3),
    min_size=2,
)


def tuned(folder: Path, *overrides: str, **changes: Any) -> Comparison:
    """Plan a comparison of the two variants. `changes` are those of the tuning."""
    return planned(folder, *overrides, variants=VARIANTS, tuning=TUNING | changes)


def tuning_starts(comparison: Comparison) -> list[str]:
    assert comparison.tuning is not None
    return (comparison.tuning.directory / "starts").read_text().split()


# --- The choice


@given(grids)
def test_the_best_value_has_the_largest_mean_over_all_seeds_and_is_the_smaller_of_equal_ones(
    by_seed: dict[float, dict[int, float]],
) -> None:
    choice = choose(by_seed, SEEDS)
    complete = {value: fmean(found.values()) for value, found in by_seed.items() if len(found) == len(SEEDS)}
    assert choice.means == pytest.approx(complete)
    if not complete:
        assert choice.best is None
        return
    assert choice.best is not None
    for value, mean in complete.items():
        assert mean <= complete[choice.best]
        assert mean < complete[choice.best] or value >= choice.best


@given(grids, st.randoms())
def test_the_order_of_the_grid_does_not_matter(by_seed: dict[float, dict[int, float]], random: Any) -> None:
    shuffled = list(by_seed.items())
    random.shuffle(shuffled)
    assert choose(dict(shuffled), SEEDS[::-1]) == choose(by_seed, SEEDS)


@given(grids)
def test_a_value_at_an_end_of_the_grid_is_named(by_seed: dict[float, dict[int, float]]) -> None:
    """The ends are those of the whole grid: a value next to one that failed is not at an end."""
    choice = choose(by_seed, SEEDS)
    ends = {min(by_seed): "smallest", max(by_seed): "largest"}
    assert choice.edge == (None if choice.best is None else ends.get(choice.best))


# --- The plan


def test_each_variant_is_tuned_with_each_value_and_then_compared_with_one(tmp_path: Path) -> None:
    comparison = tuned(tmp_path)
    tuning = comparison.tuning
    assert tuning is not None
    assert [run.name for run in tuning.runs] == [
        f"rates.tuning.{variant}.at{value}.seed{seed}"
        for seed, variant, value in itertools.product((8, 9), VARIANTS, (0.25, 0.5))
    ]
    assert {run.config.run_directory.parent for run in tuning.runs} == {tmp_path / "runs" / "rates.tuning"}
    assert {run.config.tracking.wandb_group for run in tuning.runs} == {"rates.tuning"}
    assert all(run.config.learner.learning_rate == run.value for run in tuning.runs)
    chosen = comparison.with_values({"up": 0.5, "down": 0.25})
    assert [(run.name, run.config.learner.learning_rate) for run in chosen.runs] == [
        ("rates.up.seed3", 0.5),
        ("rates.down.seed3", 0.25),
        ("rates.up.seed5", 0.5),
        ("rates.down.seed5", 0.25),
    ]
    assert {run.config.run_directory.parent for run in chosen.runs} == {tmp_path / "runs" / "rates"}


def test_runs_have_names_of_their_own_whatever_the_names_of_the_variants(tmp_path: Path) -> None:
    variants = {"hpo-0": ["objective.name=grpo"], "hpo-0.0": ["objective.name=gspo"]}
    comparison = planned(tmp_path, variants=variants, tuning={**TUNING, "values": [0.5, 5]})
    assert comparison.tuning is not None
    assert len({run.name for run in comparison.tuning.runs}) == len(comparison.tuning.runs)


def test_a_setting_that_counts_can_be_tuned(tmp_path: Path) -> None:
    comparison = tuned(tmp_path, setting="learner.mini_batches", values=[1, 2])
    assert comparison.tuning is not None
    assert [run.config.learner.mini_batches for run in comparison.tuning.runs[:2]] == [1, 2]


@pytest.mark.parametrize(
    ("tuning", "changes", "overrides", "said"),
    [
        ({"values": []}, {}, [], "tuning.values: expected two or more, got 0"),
        ({"values": [0.1]}, {}, [], "tuning.values: expected two or more, got 1"),
        ({"values": [0.1, 0.1]}, {}, [], "tuning.values: an entry is repeated"),
        ({"values": [0.1, "x"]}, {}, [], "tuning.values.1: expected a number, got 'x'"),
        (
            {"values": [0.1, -1]},
            {},
            [],
            "tuning.values: learner.learning_rate: expected a number greater than",
        ),
        ({"seeds": []}, {}, [], "tuning.seeds: expected one or more, got 0"),
        ({"seeds": [4, 4]}, {}, [], "tuning.seeds: an entry is repeated"),
        ({"seeds": [5, 6, 3]}, {}, [], "tuning.seeds: the comparison has the same: 3, 5"),
        (
            {"measure": "luck"},
            {},
            [],
            "tuning.measure: no such measure: luck; choose one of pass_at_1_final,",
        ),
        ({"measure": "alpha"}, {}, [], "tuning.measure: no such measure: alpha"),
        (
            {"measure": "pass_at_k_final"},
            {},
            ["evaluation.responses_per_prompt=1"],
            "tuning.measure: evaluations have no pass@k",
        ),
        (
            {"setting": "learner.learning_rat"},
            {},
            [],
            "tuning.setting: there is no such setting: learner.learning_rat; did you mean learner.learning_rate?",
        ),
        ({"setting": "seed"}, {}, [], "tuning.setting: seed cannot be tuned"),
        ({"setting": "task.name"}, {}, [], "tuning.setting: task.name cannot be tuned"),
        ({"setting": "evaluation.prompts"}, {}, [], "tuning.setting: evaluation.prompts cannot be tuned"),
        (
            {},
            {"variants": {**VARIANTS, "b": ["learner.learning_rate=0.1"]}},
            [],
            "variant b: learner.learning_rate: the tuning sets it",
        ),
        (
            {},
            {"overrides": ["learner.learning_rate=0.1"]},
            [],
            "overrides: learner.learning_rate: the tuning sets it",
        ),
        (
            {},
            {},
            ["learner.learning_rate=0.1"],
            "the command line: learner.learning_rate: the tuning sets it",
        ),
        (
            {"setting": "learner.warmup_steps", "values": [1, 4]},
            {"variants": {"up": ["steps=6"], "down": ["steps=3"]}},
            [],
            "variant down with learner.warmup_steps=4: learner.warmup_steps:",
        ),
        ({"value": [1]}, {}, [], "tuning.value: there is no such setting; did you mean values?"),
    ],
)
def test_each_mistake_is_one_line_before_anything_starts(
    tmp_path: Path, tuning: Mapping[str, Any], changes: Mapping[str, Any], overrides: list[str], said: str
) -> None:
    settings: dict[str, Any] = {"variants": VARIANTS, "tuning": {**TUNING, **tuning}, **changes}
    file = comparison_file(tmp_path, **settings)
    _, problems = load_comparison(file, overrides)
    assert len(problems) == 1, problems
    assert str(problems[0]).startswith(said)


def test_a_problem_that_no_value_causes_is_reported_once_for_each_variant(tmp_path: Path) -> None:
    file = comparison_file(tmp_path, variants=VARIANTS, tuning=TUNING)
    _, problems = load_comparison(file, ["rollout.workers=99"])
    assert [problem.where for problem in problems] == ["variant up: cluster", "variant down: cluster"]


# --- Running


def test_each_variant_is_compared_with_its_best_value_and_the_choice_is_shown(tmp_path: Path) -> None:
    comparison = tuned(tmp_path)
    complete, screen = run(comparison, 4)
    assert complete
    assert "the tuning: 8 runs, 0 of them already finished" in screen
    assert "4 runs, 0 of them already finished" in screen
    found = json.loads((comparison.directory / "comparison.json").read_text())
    up, down = found["tuning"]["variants"]["up"], found["tuning"]["variants"]["down"]
    assert (up["chosen"], up["edge"]) == (0.5, "largest")
    assert (down["chosen"], down["edge"]) == (0.25, "smallest")
    assert up["means"] == pytest.approx({"0.25": 0.5, "0.5": 0.75})
    assert up["by_seed"]["0.5"] == pytest.approx({"8": 0.75, "9": 0.75})
    assert "learner.learning_rate=0.5" in found["runs"]["rates.up.seed3"]
    assert "learner.learning_rate=0.25" in found["runs"]["rates.down.seed5"]
    page = (comparison.directory / "comparison.md").read_text()
    assert "| variant | 0.25 | 0.5 | chosen |" in page
    assert "| up | 0.500 | 0.750 | 0.5 |" in page
    assert "| down | 1.000 | 0.750 | 0.25 |" in page
    assert "name=rates.tuning.up.at0.25.seed8" in page
    assert "mean over the tuning's seeds (8, 9)" in page
    assert re.search(r"up +0\.500 +0\.750 +0\.5 *\n", screen)
    for shown in (page, screen):
        assert "reward area by" in shown  # the title of a narrow table is wrapped
        assert (
            "up: the best value of learner.learning_rate, 0.5, is the largest of the grid; a larger" in shown
        )
        assert "down: the best value of learner.learning_rate, 0.25, is the smallest of the grid; a" in shown


def test_finished_runs_of_the_tuning_are_skipped_and_interrupted_ones_are_resumed(tmp_path: Path) -> None:
    comparison = tuned(tmp_path)
    assert comparison.tuning is not None
    run(comparison, 4)
    assert (len(tuning_starts(comparison)), len(starts(comparison))) == (8, 4)
    comparison.tuning.runs[2].config.run_directory.joinpath("summary.json").unlink()
    assert run(comparison)[0]
    assert tuning_starts(comparison)[8:] == [comparison.tuning.runs[2].name]
    assert len(starts(comparison)) == 4
    assert run(comparison, only_table=True)[0]


def test_a_value_whose_run_failed_is_not_chosen_and_the_run_is_named(tmp_path: Path) -> None:
    comparison = tuned(tmp_path, values=[0.25, 0.5, 13])
    complete, screen = run(comparison, 4)
    assert complete
    names = [f"rates.tuning.{variant}.at13.seed{seed}" for seed in (8, 9) for variant in VARIANTS]
    assert all(
        f"{name} failed: 12:00:00  stopped: the moon is in the wrong phase" in screen for name in names
    )
    found = json.loads((comparison.directory / "comparison.json").read_text())["tuning"]
    assert found["missing"] == names
    assert {name: one["chosen"] for name, one in found["variants"].items()} == {"up": 0.5, "down": 0.25}
    assert found["variants"]["up"]["edge"] is None
    page = (comparison.directory / "comparison.md").read_text()
    assert "| up | 0.500 | 0.750 | – | 0.5 |" in page
    assert f"Tuning: not finished, or without reward area: {', '.join(names)}." in page


def test_without_a_value_to_choose_the_comparison_does_not_start(tmp_path: Path) -> None:
    comparison = tuned(tmp_path, values=[13, 14], seeds=[8])
    complete, screen = run(comparison, 4)
    assert not complete
    assert "No value of learner.learning_rate has all of its runs for up, down" in screen
    assert "rates.tuning.up.at13.seed8 failed: 12:00:00  stopped: the moon" in screen
    assert len(tuning_starts(comparison)) == 4
    assert not (comparison.directory / "starts").exists()


def test_the_table_alone_starts_no_tuning(tmp_path: Path) -> None:
    comparison = tuned(tmp_path)
    complete, screen = run(comparison, only_table=True)
    assert not complete
    assert "Tuning: not finished" in screen
    assert not list(tmp_path.rglob("starts"))


@pytest.mark.parametrize("values", [[0.25, 0.4], [0.25, 0.5, 0.6]], ids=["before", "after the tuning"])
def test_runs_with_another_chosen_value_are_not_mixed(tmp_path: Path, values: list[float]) -> None:
    """A run with a value that the grid has no longer is refused at once. After a larger grid led to another choice, the
    runs with the earlier one are refused."""
    run(tuned(tmp_path, seeds=[8]), 4)
    other = tuned(tmp_path, seeds=[8], values=values)
    with pytest.raises(OtherSettingsError, match=r"learner.learning_rate: 0\.5 -> 0\.(25|6)\..*Restore them"):
        run(other, 4)
    assert len(tuning_starts(other)) == (4 if 0.4 in values else 6)
    assert len(starts(other)) == 4


def test_runs_of_the_tuning_with_other_settings_are_refused(tmp_path: Path) -> None:
    comparison = tuned(tmp_path)
    assert comparison.tuning is not None
    train(comparison.tuning.runs[0].config)
    with pytest.raises(OtherSettingsError, match=r"rates\.tuning\.up.*steps: 4 -> 5"):
        run(tuned(tmp_path, "steps=5"))


@pytest.mark.parametrize("measure", [measure.key for measure in HEADLINES])
def test_every_headline_can_choose(tmp_path: Path, measure: str) -> None:
    comparison = tuned(tmp_path, measure=measure)
    assert comparison.tuning is not None
    assert comparison.tuning.config.measure == measure
