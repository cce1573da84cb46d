"""Answers that mean the same are right, in a real sandbox, since sympy hangs on what models write."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from cluster.core.config import RewardConfig, TaskConfig
from reward.service import make_scorer
from reward.task import Scorer
from reward.tasks.math.answers import last_answer, reference_answer
from reward.tasks.math.task import MathOptions, MathTask
from tests.builders import scored_by

pytest.importorskip("math_verify")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scorer() -> AsyncIterator[Scorer]:
    reward = RewardConfig(processes_per_worker=2, verifier_timeout_s=2, verifier_memory_mib=512)
    scorer = make_scorer(TaskConfig(name="math"), reward, [])
    await scorer.start()
    yield scorer
    await scorer.close()


@pytest.fixture(scope="module")
def math_task(tmp_path_factory: pytest.TempPathFactory) -> MathTask:
    data = tmp_path_factory.mktemp("math") / "data.jsonl"
    data.write_text('{"question": "q", "answer": "1"}\n', encoding="utf-8")
    task = MathTask(MathOptions(data=str(data)))
    task.load_verifier()
    return task


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{72}.", "72"),
        ("\\boxed{1} no, \\boxed{ 2 }", "2"),
        ("\\boxed{\\frac{1}{2}} of it", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\left\\{1\\right\\}} }", "\\left\\{1\\right\\}"),
        ("\\boxed{7", None),
        ("\\boxed{7} and \\boxed{8", None),
        ("it is 7", None),
        ("", None),
        ("#### 7", "7"),
        ("#### 6\n#### 7\nthat is all", "7"),
        ("\\boxed{8} #### 7", "8"),
    ],
)
def test_the_last_answer_counts(text: str, answer: str | None) -> None:
    assert last_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("16 - 3 - 4 = <<16-3-4=9>>9\n#### 18", "18"),
        ("Thus $x = \\boxed{\\frac{3}{4}}$.", "\\frac{3}{4}"),
        ("\\boxed{1} #### 2", "2"),
        (" 42 ", "42"),
    ],
)
def test_references_of_each_kind_are_read(text: str, answer: str) -> None:
    assert reference_answer(text) == answer


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


_UNDEFINED = [
    "|3/7/0|",
    "|3/7/0| + 1",
    "5 - |1/3/0|",
    "|\\infty|",
    "\\infty",
    "-\\infty",
    "|\\log(0)|",
    "\\left|\\frac{\\frac37}{0}\\right|",
    "|\\pi/0|",
    "x = |3/7/0|",
    "\\{|3/7/0|\\}",
    "\\frac{1}{0}",
    "0 \\cdot \\frac{1}{0}",
    "\\begin{pmatrix} |1/0| \\\\ 1 \\end{pmatrix}",
]
_FINITE_REFERENCES = [
    "0", "1", "-3", "72", "0.5", "\\frac{3}{7}", "\\sqrt{2}", "\\pi", "x = 4", "\\{1, 2\\}", "(1, 2)", "x^2 + 1"
]  # fmt: skip


@pytest.mark.parametrize("answer", _UNDEFINED)
def test_an_infinite_or_undefined_value_equals_no_finite_reference(math_task: MathTask, answer: str) -> None:
    for reference in _FINITE_REFERENCES:
        verdict = math_task.verify({"answer": f"\\boxed{{{reference}}}"}, f"\\boxed{{{answer}}}")
        assert verdict.outcome == "incorrect", f"{answer} for {reference}"


@pytest.mark.parametrize(
    "answer",
    [
        *_FINITE_REFERENCES,
        "\\infty",
        "[2, \\infty)",
        "(-\\infty, 3) \\cup (4, \\infty)",
        "x > 3",
        "\\text{yes}",
    ],
)
def test_every_reference_equals_itself(math_task: MathTask, answer: str) -> None:
    """Infinite references included: a limit may be infinite."""
    verdict = math_task.verify({"answer": f"\\boxed{{{answer}}}"}, f"\\boxed{{{answer}}}")
    assert verdict.outcome == "correct", verdict.reason


@pytest.mark.asyncio(loop_scope="module")
async def test_what_sympy_does_not_survive_costs_its_own_verdict(scorer: Scorer) -> None:
    towers = [
        "\\boxed{9^{9^{9^{9}}}}",
        "\\boxed{(10^{10})!!}",
        "\\boxed{" + "(" * 400 + "1" + ")" * 400 + "}",
    ]
    *hostile, fine = await scored_by(scorer, {"answer": "12"}, [*towers, "\\boxed{12}"])
    assert fine.outcome == "correct"
    assert hostile[0].outcome == "timeout", "else nothing hung, and this test shows nothing"
    assert all(verdict.outcome != "correct" for verdict in hostile)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_reference_that_is_none_is_an_error(scorer: Scorer) -> None:
    (verdict,) = await scored_by(scorer, {"answer": "####"}, ["\\boxed{12}"])
    assert verdict.outcome == "error"
    assert "the reference '' cannot be read as mathematics" in verdict.reason


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
