"""The metrics and the report of an evaluation, as JSON and as tables."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cluster.commands.evaluate.tables import report_tables
from cluster.core.config import RunConfig
from cluster.core.types import CategoryOf, ScoredGroup
from cluster.metrics.evaluation import evaluation_metrics, evaluation_report
from cluster.metrics.intervals import CONFIDENCE, METHOD, interval
from tests.builders import make_group, make_prompt, make_response

CONFIG = RunConfig.model_validate({"seed": 7, "model": {"source": "./[bold]model"}})


def no_category(problem: object) -> None:
    return None


def shown(groups: Sequence[ScoredGroup], category_of: CategoryOf = no_category) -> str:
    console = Console(width=100, file=StringIO())
    with console.capture() as capture:
        for table in report_tables(evaluation_report(CONFIG, "eval", groups, category_of)):
            console.print(table)
    return capture.get()


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line[0] in "│"]


def groups() -> list[ScoredGroup]:
    """Return a group with one correct and two equal incorrect answers, and a group with a failed verdict."""
    responses = [make_response(2), make_response(4), make_response(6, finish_reason="length")]
    first = make_group([1.0, 0.0, 0.0], responses)
    answers = ["correct", "incorrect", "incorrect"]
    verdicts = [replace(v, answer=answer) for v, answer in zip(first.verdicts, answers, strict=True)]
    return [replace(first, verdicts=tuple(verdicts)), make_group([1.0, 1.0, None], responses)]


def test_the_report_as_json() -> None:
    report = evaluation_report(CONFIG, "train", groups(), no_category)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report == {
        "model": "./[bold]model",
        "task": "countdown",
        "split": "train",
        "prompts": 2,
        "responses_per_prompt": 3,
        "temperature": 1.0,
        "max_response_tokens": 256,
        "seed": 7,
        "pass_at_1": pytest.approx((1 / 3 + 2 / 3) / 2),
        "pass_at_1_stderr": pytest.approx(1 / 6),  # deviation 1/3 / √2, over √2
        "pass_at_k": {"1": pytest.approx(1 / 2), "2": pytest.approx((2 / 3 + 1) / 2)},
        "pass_at_k_interval": {
            "1": list(interval([1 / 3, 2 / 3], 6) or ()),
            "2": list(interval([2 / 3, 1], 6) or ()),
        },
        "majority_at_k": {"3": 0.5},
        "majority_at_k_interval": {"3": list(interval([0.0, 1.0], 6) or ())},
        "intervals": {"confidence": CONFIDENCE, "method": METHOD},
        "categories": {},
        "truncated_fraction": pytest.approx(1 / 3),
        "response_length_mean": 4.0,
        "failed_verdicts": 1,
    }


def test_the_tables_of_the_report() -> None:
    assert cells(shown(groups())) == [
        ["model", "./[bold]model"],
        ["evaluated on", "countdown, eval: 2 prompts × 3 responses"],
        ["sampled with", "temperature 1, seed 7"],
        ["pass@1", "50.0 % (0.9 … 99.1)"],
        ["pass@2", "83.3 % (2.1 … 99.9)"],
        ["maj@3", "50.0 % (0.2 … 99.8)"],
        ["mean length", "4.0 tokens"],
        ["truncated", "33 % at 256 tokens"],
        ["failed verdicts", "1"],
    ]
    assert "in parentheses: 95 % confidence interval" in shown(groups())


def test_each_category_has_its_own_numbers() -> None:
    """A prompt without a category counts only in the overall metrics."""
    kinds = [("easy", [1.0, 1.0]), ("[b]hard", [1.0, 0.0]), ("easy", [0.0, 0.0]), (None, [1.0, 1.0])]
    named = [
        make_group(rewards, prompt=replace(make_prompt(), problem=problem)) for problem, rewards in kinds
    ]
    report = evaluation_report(CONFIG, "eval", named, lambda problem: problem)
    assert report["pass_at_1"] == pytest.approx(2.5 / 4)
    assert {name: (found["prompts"], found["pass_at_k"]) for name, found in report["categories"].items()} == {
        "[b]hard": (1, {"1": 0.5, "2": 1.0}),
        "easy": (2, {"1": 0.5, "2": 0.5}),
    }
    assert report["categories"]["[b]hard"]["pass_at_k_interval"] == {"1": None, "2": None}
    table = shown(named, lambda problem: problem)
    assert cells(table)[-2:] == [
        ["[b]hard", "1", "50.0 %", "100.0 %"],
        ["easy", "2", "50.0 % (0.2 … 99.8)", "50.0 % (0.2 … 99.8)"],
    ]


def test_unknown_values_are_null_and_shown_as_question_marks() -> None:
    unseeded = make_prompt()
    unseeded = replace(unseeded, sampling=replace(unseeded.sampling, seed=None))
    one_prompt = [make_group([None, None], prompt=unseeded)]
    report = evaluation_report(CONFIG, "eval", one_prompt, no_category)
    unknown = {key for key, value in report.items() if value is None}
    assert unknown == {"seed", "pass_at_1_stderr"}
    assert report["pass_at_k"] == {"1": 0.0, "2": 0.0}
    assert report["pass_at_k_interval"] == {"1": None, "2": None}
    assert report["failed_verdicts"] == 2
    assert not any(isinstance(value, float) and math.isnan(value) for value in report.values())
    assert "no seed" in shown(one_prompt)


def test_pass_at_1_is_the_mean_over_prompts() -> None:
    """The values 1, 1/2 and 0 have the standard deviation 1/2, so the standard error is 1/2 / √3."""
    truncated = [make_response(), make_response(finish_reason="length")]
    groups = [make_group([1.0, 1.0]), make_group([1.0, 0.0]), make_group([0.0, None], truncated)]
    assert evaluation_metrics(groups) == pytest.approx(
        {
            "eval/pass_at_1": 0.5,
            "eval/pass_at_1_stderr": 0.5 / math.sqrt(3),
            "eval/pass_at_k": 2 / 3,
            "eval/response_length_mean": 3.0,
            "eval/truncated_fraction": 1 / 6,
            "eval/error_fraction": 1 / 6,
        }
    )


@given(
    st.lists(st.lists(st.sampled_from([1.0, 0.0]), min_size=4, max_size=4), min_size=1, max_size=5), st.data()
)
def test_a_verifier_that_fails_in_place_of_saying_incorrect_changes_no_result(
    rewards: list[list[float]], data: st.DataObject
) -> None:
    """A model gains nothing by answers that the verifier fails on: neither on solved nor on unsolved prompts."""
    failing = [
        [None if reward == 0 and data.draw(st.booleans()) else reward for reward in group]
        for group in rewards
    ]
    with_failures, without = (
        evaluation_report(CONFIG, "eval", [make_group(group) for group in groups], no_category)
        for groups in (failing, rewards)
    )
    assert with_failures.pop("failed_verdicts") == sum(group.count(None) for group in failing)
    assert without.pop("failed_verdicts") == 0
    for report in (with_failures, without):  # votes: a response without an answer abstains
        del report["majority_at_k"], report["majority_at_k_interval"]
    assert with_failures == without


@given(st.lists(st.lists(st.sampled_from([1.0, 0.0, None]), min_size=3, max_size=3), min_size=1, max_size=5))
def test_pass_at_k_is_the_fraction_of_prompts_with_a_correct_response(
    rewards: list[list[float | None]],
) -> None:
    """With k responses per prompt there is one choice of k responses."""
    metrics = evaluation_metrics([make_group(group) for group in rewards])
    assert metrics["eval/pass_at_k"] == pytest.approx(sum(1.0 in group for group in rewards) / len(rewards))
    assert metrics["eval/pass_at_k"] >= metrics["eval/pass_at_1"]


def test_one_response_per_prompt_has_no_pass_at_k() -> None:
    assert "eval/pass_at_k" not in evaluation_metrics([make_group([1.0]), make_group([0.0])])


def test_one_prompt_has_no_standard_error() -> None:
    assert math.isnan(evaluation_metrics([make_group([1.0, 0.0])])["eval/pass_at_1_stderr"])
