"""The report, the tables and the page of a plan, from scored groups."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from cluster.commands.plan.page import plan_page
from cluster.commands.plan.report import plan_report
from cluster.commands.plan.tables import closing_lines, plan_tables
from cluster.core.config import RunConfig
from cluster.core.text import json_text
from cluster.core.types import ScoredGroup, Verdict
from tests.builders import make_group, make_response
from tests.cluster.commands.report.test_report import EVIL, Reader

WIDE = 250


def config_of(**sections: Any) -> RunConfig:
    return RunConfig.model_validate(sections)


def sample(correct: list[int], responses: int = 16) -> list[ScoredGroup]:
    """Return a group for each number of correct responses."""
    return [make_group([1.0] * count + [0.0] * (responses - count)) for count in correct]


def drawn(a: float, b: float, prompts: int = 128) -> list[ScoredGroup]:
    rng = np.random.default_rng(0)
    return sample(rng.binomial(16, rng.beta(a, b, prompts)).tolist())


def report(groups: list[ScoredGroup], **sections: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json_text(plan_report(config_of(**sections), groups, 4.0, 2)))
    return found


def printed(found: dict[str, Any]) -> str:
    console = Console(width=WIDE, record=True, file=io.StringIO())
    for table in plan_tables(found):
        console.print(table)
    return console.export_text() + "\n".join([found["reason"], *closing_lines(found)])


def quantities(value: Any) -> list[dict[str, float]]:
    if isinstance(value, dict):
        if value.keys() == {"estimate", "low", "high"}:
            return [value]
        return [found for item in value.values() for found in quantities(item)]
    return [found for item in value for found in quantities(item)] if isinstance(value, list) else []


def test_every_prediction_has_an_interval_and_the_histogram_counts_the_prompts() -> None:
    found = report(drawn(1, 10))
    assert len(found["group_sizes"]) == 6
    assert len(quantities(found)) == 4 + 6 * 7
    assert all(q["low"] <= q["estimate"] <= q["high"] for q in quantities(found))
    assert sum(found["histogram"]) == found["prompts"] == 128
    assert math.fsum(found["expected_histogram"]) == pytest.approx(128)
    assert found["pass_rate"]["low"] < found["pass_at_1"] < found["pass_rate"]["high"]
    assert found["works"] == "yes"
    assert found["notes"] == []


def test_times_and_signals_per_second_use_the_speed_of_the_sample() -> None:
    found = report(drawn(1, 10))
    speed = 128 * 16 / 4.0
    assert found["sampling"] == {"seconds": 4.0, "workers": 2, "responses_per_second": speed}
    for size in found["group_sizes"]:
        per_group, seconds = size["responses_per_informative_group"], size["seconds_per_informative_group"]
        assert seconds["estimate"] == pytest.approx(per_group["estimate"] / speed)
        assert size["signal_per_second"]["high"] == pytest.approx(size["signal"]["high"] * speed)
    assert "512 responses/s, measured in this sample: 4.0 s with 2 rollout workers" in printed(found)


def test_the_suggested_settings_are_valid_and_keep_the_responses_of_a_step() -> None:
    sections: dict[str, Any] = {
        "rollout": {"prompts_per_step": 24, "responses_per_prompt": 10},
        "learner": {"mini_batches": 6},
    }
    found = report(drawn(1, 10), **sections)
    settings = found["suggestion"]["settings"]
    prompts, responses = settings["rollout.prompts_per_step"], settings["rollout.responses_per_prompt"]
    assert prompts * responses == 240
    assert prompts % 6 == 0
    assert [size["responses"] for size in found["group_sizes"]] == [4, 8, 10, 16, 32, 64, 128]
    assert f"rollout.prompts_per_step={prompts} rollout.responses_per_prompt={responses}" in printed(found)


def test_the_configured_size_is_recognized() -> None:
    suggested = report(drawn(1, 10))["suggestion"]["settings"]["rollout.responses_per_prompt"]
    rollout = {"prompts_per_step": 512 // suggested, "responses_per_prompt": suggested}
    found = report(drawn(1, 10), rollout=rollout)
    assert found["suggestion"]["is_configured"]
    assert "settings (as configured): " in printed(found)


@pytest.mark.parametrize(("prompts", "responses"), [(1, 1), (1, 16), (128, 1), (128, 16)])
def test_without_any_success_one_line_has_the_bounds_of_the_pass_rate(prompts: int, responses: int) -> None:
    found = report(sample([0] * prompts, responses))
    assert found["works"] == "no"
    assert f"none of {prompts * responses} responses to {prompts} prompts is correct" in found["reason"]
    assert len(found["reason"].splitlines()) == 1
    assert (found["pass_rate"], found["suggestion"], found["group_sizes"]) == (None, None, [])
    assert found["reason"] in printed(found)
    assert found["reason"] in Reader(plan_page(found, "version")).text


def test_the_bounds_without_a_success_are_those_of_clopper_and_pearson() -> None:
    assert "below 0.15 % on these prompts and 2.3 % on all" in report(sample([0] * 128))["reason"]
    assert "below 17 % on these prompts and 95 % on all" in report(sample([0]))["reason"]


def test_without_any_failure_there_is_no_signal_either() -> None:
    found = report(sample([16] * 128))
    assert found["works"] == "no"
    assert "all of 2048 responses to 128 prompts are correct" in found["reason"]
    assert found["suggestion"] is None


def test_training_cannot_work_if_a_step_has_surely_less_than_one_informative_group() -> None:
    groups = sample([1] + [0] * 1999)
    small = report(groups, rollout={"prompts_per_step": 4, "responses_per_prompt": 4})
    assert small["works"] == "no"
    assert "training cannot work" in small["reason"]
    large = report(groups, rollout={"prompts_per_step": 65536, "responses_per_prompt": 16})
    assert large["works"] == "yes"


def test_a_small_sample_may_leave_it_open() -> None:
    found = report(sample([1, *[0] * 40]), rollout={"prompts_per_step": 8})
    assert found["works"] == "uncertain"
    assert "--prompts" in found["reason"]


@settings(max_examples=15, deadline=None)  # each fits a distribution
@given(st.integers(1, 6), st.data())
def test_any_sample_can_be_reported(responses: int, data: st.DataObject) -> None:
    correct = data.draw(st.lists(st.integers(0, responses), min_size=1, max_size=5))
    found = report(sample(correct, responses))
    assert found["works"] in ("yes", "uncertain", "no")
    assert found["reason"] in printed(found)
    assert "NaN" not in json_text(found)


def test_group_sizes_above_the_sampled_one_are_marked_as_extrapolations() -> None:
    text = printed(report(drawn(1, 10)))
    assert "32*" in text
    assert "16*" not in text
    assert "* larger than the sampled groups" in text


def noted(groups: list[ScoredGroup], **sections: Any) -> str:
    return "\n".join(report(groups, **sections)["notes"])


def test_notes_say_what_the_numbers_leave_out() -> None:
    groups = drawn(1, 10)
    assert "failed on 2 responses" in noted([*groups, make_group([None, None, *[1.0] * 14])])
    partial = make_group([0.5] * 8 + [1.0] * 8)  # all correct, with different rewards
    assert "the rewards of 1 groups differ" in noted([*groups, partial])
    assert "rollout.workers is 5" in noted(groups, rollout={"workers": 5})
    assert "α stays at objective.alpha_min" in noted(groups, objective={"alpha_min": 0.9})
    assert noted(groups, objective={"name": "grpo", "alpha_min": 0.9}) == ""
    assert "dynamic sampling needs" in noted(drawn(0.05, 5), rollout={"dynamic_sampling_limit": 2})
    assert noted(groups, rollout={"dynamic_sampling_limit": 50}) == ""


def test_a_failed_verdict_and_a_limit_are_no_success() -> None:
    verdicts = [
        Verdict("error", 0.0, None, ""),
        Verdict("limit", 0.0, None, ""),
        Verdict("correct", 1.0, None, ""),
    ]
    group = make_group([1.0] * 3)
    group = ScoredGroup(group.group, tuple(verdicts))
    found = report([group, *sample([1], 3)])
    assert found["histogram"] == [0, 2, 0, 0]
    assert found["failed_verdicts"] == 1


def test_truncated_responses_are_counted() -> None:
    group = make_group([1.0, 0.0], [make_response(finish_reason="length"), make_response()])
    assert report([group])["truncated_fraction"] == 0.5


@pytest.mark.parametrize("groups", [drawn(1, 10), sample([0] * 4)], ids=["predictions", "none"])
def test_the_page_is_one_file_without_scripts_that_shows_names_as_text(groups: list[ScoredGroup]) -> None:
    found = report(groups) | {"model": EVIL, "task": EVIL}
    read = Reader(plan_page(found, EVIL))
    assert not {"script", "link", "iframe", "object", "form", "a"} & {tag for tag, _ in read.tags}
    sources = [attributes["src"] or "" for tag, attributes in read.tags if tag == "img"]
    assert len(sources) == (4 if found["group_sizes"] else 1)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert EVIL in read.text
    (policy,) = [a["content"] for tag, a in read.tags if tag == "meta" and "http-equiv" in a]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_the_page_shows_the_row_of_the_suggestion_in_bold() -> None:
    found = report(drawn(1, 10))
    read = Reader(plan_page(found, "version"))
    assert sum(attributes.get("class") == "suggested" for tag, attributes in read.tags if tag == "tr") == 1
    for size in found["group_sizes"]:
        assert f"{size['responses']}" in read.text
