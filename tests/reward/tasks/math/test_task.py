"""The task with mathematical problems, in a real sandbox."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from cluster.core.config import RewardConfig, TaskConfig
from reward.service import make_scorer
from reward.task import Scorer
from reward.tasks.math.task import MathOptions, MathTask
from tests.builders import scored_by

pytest.importorskip("latex2sympy2_extended")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scorer() -> AsyncIterator[Scorer]:
    reward = RewardConfig(processes_per_worker=2, verifier_timeout_s=2, verifier_memory_mib=512)
    scorer = make_scorer(TaskConfig(name="math"), reward, [])
    await scorer.start()
    yield scorer
    await scorer.close()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("reference", "response", "outcome"),
    [
        ("#### 72", "\\boxed{72}", "correct"),
        ("#### 72", "#### 72", "correct"),
        ("#### 72", "72", "incorrect"),
        ("#### 1,000", "\\boxed{1000}", "correct"),
        ("#### 72", "\\boxed{72.0}", "correct"),
        ("#### 12", "\\boxed{12\\text{ apples}}", "correct"),
        ("#### 12", "\\boxed{3} or \\boxed{12} or \\boxed{13}", "incorrect"),
        ("#### 12", "\\boxed{12, 13}", "incorrect"),
        ("\\boxed{\\frac{1}{2}}", "\\boxed{0.5}", "correct"),
        ("\\boxed{x^2 + 1}", "\\boxed{1 + x^2}", "correct"),
        ("\\boxed{(1, 2)}", "\\boxed{(2, 1)}", "incorrect"),
        ("\\boxed{\\sqrt{8}}", "\\boxed{2\\sqrt{2}}", "correct"),
        ("12", "\\boxed{}", "incorrect"),
        ("12", "\\boxed{\\frac{1}{}}", "incorrect"),
        ("12", "\\boxed{\\text{none}}", "incorrect"),
        ("12", "\\boxed{" + "(" * 3000 + "}", "incorrect"),
        ("12", "\\boxed{" + "9" * 1001 + "}", "incorrect"),
    ],
)
async def test_answers_are_compared_by_what_they_mean(
    scorer: Scorer, reference: str, response: str, outcome: str
) -> None:
    (verdict,) = await scored_by(scorer, {"answer": reference}, [response])
    assert verdict.outcome == outcome, verdict.reason


@pytest.mark.asyncio(loop_scope="module")
async def test_an_answer_that_cannot_be_computed_is_incorrect(scorer: Scorer) -> None:
    """It is the fault of the answer, and neither an error nor a limit."""
    towers = [
        "\\boxed{9^{9^{9^{9}}}}",
        "\\boxed{(10^{10})!!}",
        "\\boxed{" + "(" * 400 + "1" + ")" * 400 + "}",
        "\\boxed{\\frac{0}{0}}",
        "\\boxed{\\unknown{{{}",
    ]
    *hostile, fine = await scored_by(scorer, {"answer": "12"}, [*towers, "\\boxed{12}"])
    assert fine.outcome == "correct"
    assert [verdict.outcome for verdict in hostile] == ["incorrect"] * len(towers)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("reference", ["####", "", None, float("nan"), {"value": 5}])
async def test_a_reference_that_is_no_answer_is_an_error(scorer: Scorer, reference: object) -> None:
    (verdict,) = await scored_by(scorer, {"answer": reference}, ["\\boxed{12}"])
    assert verdict.outcome == "error"
    assert verdict.reason.startswith("the reference is ")


def test_rows_without_an_answer_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "gsm.jsonl"
    rows = [{"question": "1 + 1?", "answer": "#### 2"}, {"question": "2 + 2?"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"gsm.jsonl:2: there is no field 'answer'"):
        MathTask(MathOptions(data=str(file))).problems("train")
    file.write_text(json.dumps(rows[0]) + "\n")
    task = MathTask(MathOptions(data=str(file)))
    (row,) = [*task.problems("train"), *task.problems("eval")]
    assert task.render(row)[0]["content"].endswith("within \\boxed{}.")  # type: ignore[index]
