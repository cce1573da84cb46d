"""A user's function as verifier in a real sandbox: it is found, called in each of its forms, and its values are
checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.core.config import RewardConfig, TaskConfig
from cluster.core.types import Verdict
from reward.service import make_scorer, score_in_order
from reward.verifier_check import verifier_problem
from tests.builders import scored_by

PROBLEM = {"prompt": "2 + 2?", "answer": "4"}


def task(function: str, **options: Any) -> TaskConfig:
    name = function if ":" in function else f"tests.reward.tasks.python.rewards:{function}"
    return TaskConfig(name="python", options={"function": name, **options})


async def verdicts(
    function: str, responses: Sequence[str], reward: RewardConfig | None = None, **options: Any
) -> list[Verdict]:
    scorer = make_scorer(task(function, **options), reward or RewardConfig(processes_per_worker=1), [])
    await scorer.start()
    try:
        return await scored_by(scorer, PROBLEM, responses)
    finally:
        await scorer.close()


@pytest.mark.parametrize(
    ("function", "batched"),
    [("exact", False), ("patient", False), ("many", True), ("patient_with_many", True)],
)
async def test_functions_of_every_form(function: str, batched: bool) -> None:
    scored = await verdicts(function, ["4", "5"] * 20, batched=batched)
    assert [verdict.outcome for verdict in scored] == ["correct", "incorrect"] * 20
    assert [verdict.reward for verdict in scored] == [1.0, 0.0] * 20


async def test_a_failure_is_one_responses_own() -> None:
    responses = ["4"] * 10 + ["raise"] + ["4"] * 10
    scored = await verdicts("raising_sometimes", responses)
    assert [verdict.outcome for verdict in scored] == ["correct"] * 10 + ["error"] + ["correct"] * 10
    assert scored[10].reason.startswith("KeyError: 'rubric' (rewards.py:")
    scored = await verdicts("many_and_one_is_nothing", ["4", "nothing", "4"], batched=True)
    assert [verdict.outcome for verdict in scored] == ["correct", "error", "correct"]


@pytest.mark.parametrize(
    ("function", "batched", "reason"),
    [
        ("careless", False, "IndexError: list index out of range (rewards.py:"),
        ("forgetful", False, "the verifier returned None, which is not a reward"),
        ("wordy", False, "the verifier returned 'correct', which is not a reward"),
        ("never_a_number", False, "the verifier returned the reward nan"),
        ("too_few", True, "the verifier returned 0 rewards for 1 responses"),
        ("no_list", True, "the verifier returned 1.0 for 1 responses, not a list"),
        ("as_set", True, "the verifier returned a set, whose order says nothing about the responses"),
        ("as_keys", True, "the verifier returned a dict_keys, whose order says nothing about the responses"),
        ("as_values", True, "the verifier returned a dict_values, whose order says nothing"),
        ("as_dictionary", True, "the verifier returned a dict, whose order says nothing about the responses"),
    ],
)
async def test_an_invalid_reward_is_an_error_and_not_a_zero(
    function: str, batched: bool, reason: str
) -> None:
    (verdict,) = await verdicts(function, [""], batched=batched)
    assert verdict.outcome == "error"
    assert verdict.reason.startswith(reason)


@pytest.mark.parametrize(
    ("function", "batched"), [("emptying", False), ("patient_and_emptying", False), ("emptying_many", True)]
)
@pytest.mark.parametrize("shaped", [False, True])
async def test_each_call_gets_a_problem_of_its_own(function: str, batched: bool, shaped: bool) -> None:
    """A function may change its problem. Neither other calls nor the shaping functions see that, nor each other's."""
    term = {"function": "tests.reward.tasks.python.rewards:steps_left", "weight": 0.1}
    reward = RewardConfig.model_validate(
        {"processes_per_worker": 1, "shaping": [term, term] if shaped else []}
    )
    same = {"prompt": "2 + 2?", "answer": "4", "steps": ["a", "b"]}
    equal = [dict(same, steps=["a", "b"]) for _ in range(30)]
    scorer = make_scorer(task(function, batched=batched), reward, [])
    await scorer.start()
    try:
        scored = await score_in_order(scorer, [(problem, "4") for problem in [*[same] * 30, *equal]])
    finally:
        await scorer.close()
    assert {verdict.reason for verdict in scored} == {""}
    assert {verdict.outcome for verdict in scored} == {"correct"}
    assert [verdict.reward for verdict in scored] == pytest.approx([1.4 if shaped else 1.0] * 60)


def test_a_working_verifier_passes_the_check() -> None:
    assert verifier_problem(task("exact"), RewardConfig(), [], PROBLEM) is None


@pytest.mark.parametrize(
    ("function", "obstacle"),
    [
        ("nowhere_at_all:score", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("tests.reward.tasks.python.rewards:scor", "there is no function 'scor' in "),
        ("not_a_function", "there is no function 'not_a_function' in "),
        (
            "one_argument",
            "tests.reward.tasks.python.rewards:one_argument has the parameters (response: 'str') -> 'bool', but will "
            "be called with (problem, response)",
        ),
        (
            "careless",
            "the verifier gave no verdict on an empty response: IndexError: list index out of range (rewards.py:",
        ),
        ("forgetful", "the verifier gave no verdict on an empty response: the verifier returned None"),
    ],
)
def test_mistakes_found_before_the_run_are_one_line(function: str, obstacle: str) -> None:
    found = verifier_problem(task(function), RewardConfig(), [], PROBLEM)
    assert found is not None
    assert found.startswith(obstacle)
    assert "\n" not in found


def test_a_module_that_cannot_be_imported_says_where(tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text("import os\n\nscale = 1 / 0\n")
    (tmp_path / "unwritten.py").write_text("def score(problem, response)\n    return 1\n")
    for module, obstacle in {
        "my_rewards": "ZeroDivisionError: division by zero (my_rewards.py:3)",
        "unwritten": "SyntaxError: expected ':' (unwritten.py, line 1)",
    }.items():
        found = verifier_problem(task(f"{module}:score"), RewardConfig(), [str(tmp_path)], PROBLEM)
        assert found is not None
        assert found.startswith(obstacle)


async def test_rewards_are_shaped_and_outcomes_are_not() -> None:
    """A correct answer gives 1, and each character costs 0.1. A shaping function may fail as well."""
    here = "tests.reward.tasks.python.rewards"
    shaped = RewardConfig.model_validate(
        {"processes_per_worker": 1, "shaping": [{"function": f"{here}:length", "weight": -0.1}]}
    )
    for function, batched in (("exact", False), ("many", True)):
        scored = await verdicts(function, ["4", "5555"], shaped, batched=batched)
        assert [verdict.outcome for verdict in scored] == ["correct", "incorrect"]
        assert [verdict.reward for verdict in scored] == pytest.approx([0.9, -0.4])
    assert await verdicts("abstain", ["4"], shaped) == [Verdict("error", 0.0, None, "no access")]
    failing = RewardConfig.model_validate({"shaping": [{"function": f"{here}:never_a_number"}]})
    (verdict,) = await verdicts("exact", ["4"], failing)
    assert verdict.outcome == "error"
    assert "returned the reward nan" in verdict.reason
