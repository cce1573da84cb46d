"""TeleLogs as a task: options, verdicts, and problems from users' data."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from reward.registry import build_task
from reward.tasks.telelogs.causes import LABELS
from reward.tasks.telelogs.generator import GeneratedProblems, GeneratorOptions
from reward.tasks.telelogs.problem import PUBLISHED, Problem, randomized_options
from reward.tasks.telelogs.solver import solve
from reward.tasks.telelogs.task import TeleLogsOptions, TeleLogsTask
from tests.reward.dataset.hub import serve_as_hub

ROWS = [
    {"question": p.question, "answer": p.answer} for p in GeneratedProblems(GeneratorOptions("train"), 40)
]


def task(**options: Any) -> TeleLogsTask:
    return TeleLogsTask(TeleLogsOptions(**options))


def write_jsonl(file: Path, rows: Sequence[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


# --- The task


@pytest.mark.parametrize("style", ["full", "compact", "compact_chat"])
@pytest.mark.parametrize("randomized", [False, True])
def test_the_correct_label_is_correct_and_every_other_is_not(style: str, randomized: bool) -> None:
    built = build_task("telelogs", {"style": style, "randomized_labels": randomized, "train_problems": 16})
    asked = built.problems("train")
    assert len(asked) == 16
    for problem in asked:
        outcomes = {label: built.verify(problem, f"\\boxed{{{label}}}").outcome for label in problem.labels}
        assert [label for label, outcome in outcomes.items() if outcome == "correct"] == [problem.answer]
        example = built.example(problem)
        assert [built.verify(problem, each).reward for each in (example.correct, example.incorrect)] == [
            1.0,
            0.0,
        ]


def test_compact_questions_are_plain_text_and_the_others_chat_messages() -> None:
    for style, kind in (("compact", str), ("compact_chat", list), ("full", list)):
        built = task(style=style)
        assert isinstance(built.render(built.problems("train")[0]), kind)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValidationError):
        TeleLogsOptions.model_validate({"styel": "full"})


# --- Randomized labels


@given(st.sampled_from(LABELS), st.randoms(use_true_random=False))
def test_randomized_options_are_five_to_eight_with_the_correct_one_under_other_labels(
    correct: str, rng: Any
) -> None:
    options = randomized_options(correct, rng)
    causes = [option.cause for option in options]
    printed = [option.printed for option in options]
    assert 5 <= len(options) <= 8
    assert correct in causes
    assert len(set(causes)) == len(set(printed)) == len(options)
    assert not set(printed) & set(LABELS)
    kinds = {(len(label), label[-1].isdigit(), label[0].isupper()) for label in printed}
    assert kinds in ({(1, True, False)}, {(2, True, True)})


def test_the_causes_are_shuffled_and_each_is_sometimes_left_out() -> None:
    import random

    drawn = [randomized_options("C3", random.Random(seed)) for seed in range(200)]
    assert {len(options) for options in drawn} == {5, 6, 7, 8}
    assert {options[0].cause for options in drawn} == set(LABELS)
    assert tuple(type(PUBLISHED[0])(label, label) for label in LABELS) == PUBLISHED


# --- Data of the user's


def as_csv(directory: Path) -> Path:
    file = directory / "rows.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["answer", "question"])
        writer.writeheader()
        writer.writerows(ROWS)
    return file


def as_json(directory: Path) -> Path:
    file = directory / "rows.json"
    file.write_text(json.dumps(ROWS), encoding="utf-8")
    return file


def as_parquet(directory: Path) -> Path:
    from datasets import Dataset

    file = directory / "rows.parquet"
    Dataset.from_list(ROWS).to_parquet(file)
    return file


def as_jsonl(directory: Path) -> Path:
    return write_jsonl(directory / "rows.jsonl", ROWS)


def asked_by(built: TeleLogsTask) -> dict[str, str]:
    return {p.question: p.answer for split in ("train", "eval") for p in built.problems(split)}  # type: ignore[arg-type]


@pytest.mark.parametrize("write", [as_jsonl, as_json, as_csv, as_parquet])
def test_every_kind_of_file_gives_the_same_problems(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    file = write(tmp_path)
    built = task(data=str(file), eval_fraction=0.3)
    assert asked_by(built) == {row["question"]: row["answer"] for row in ROWS}
    train, evaluation = ({p.question for p in built.problems(split)} for split in ("train", "eval"))
    assert not train & evaluation
    assert train
    assert evaluation


def test_a_file_without_splits_is_split_by_its_questions_in_any_order(tmp_path: Path) -> None:
    there = task(data=str(write_jsonl(tmp_path / "a.jsonl", ROWS)), eval_fraction=0.3)
    back = task(data=str(write_jsonl(tmp_path / "b.jsonl", ROWS[::-1])), eval_fraction=0.3)
    assert {p.question for p in there.problems("train")} == {p.question for p in back.problems("train")}


def test_a_directory_with_a_train_and_a_test_file_keeps_its_splits(tmp_path: Path) -> None:
    """A question of the test file is not trained on."""
    write_jsonl(tmp_path / "telelogs_train.jsonl", ROWS[:30])
    write_jsonl(tmp_path / "test-00000-of-00001.jsonl", ROWS[28:])
    built = task(data=str(tmp_path))
    assert [p.question for p in built.problems("train")] == [row["question"] for row in ROWS[:28]]
    assert [p.question for p in built.problems("eval")] == [row["question"] for row in ROWS[28:]]


def test_a_split_may_be_in_several_files(tmp_path: Path) -> None:
    for n in range(3):
        write_jsonl(tmp_path / f"train-0000{n}-of-00003.jsonl", ROWS[10 * n : 10 * n + 10])
    write_jsonl(tmp_path / "test.jsonl", ROWS[30:])
    assert len(task(data=str(tmp_path)).problems("train")) == 30


def test_the_options_limit_the_number_of_problems(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", ROWS[:30])
    write_jsonl(tmp_path / "test.jsonl", ROWS[30:])
    built = task(data=str(tmp_path), train_problems=7, eval_problems=3)
    assert (len(built.problems("train")), len(built.problems("eval"))) == (7, 3)


def test_questions_of_users_can_get_randomized_labels(tmp_path: Path) -> None:
    """The solver reads the new list, and still finds the cause."""
    built = task(data=str(write_jsonl(tmp_path / "rows.jsonl", ROWS)), randomized_labels=True)
    asked: list[Problem] = [*built.problems("train"), *built.problems("eval")]
    assert len({problem.labels for problem in asked}) > 30
    for problem in asked:
        assert 5 <= len(problem.labels) <= 8
        assert f"these {len(problem.labels)} root causes" in problem.question
        assert solve(problem.question) == problem.answer
    assert asked == [*built.problems("train"), *built.problems("eval")]


def test_a_question_without_a_list_of_causes_is_refused_only_if_labels_are_randomized(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [*ROWS[:2], {"question": "Why is it slow?", "answer": "C1"}])
    assert len(asked_by(task(data=str(file)))) == 3
    with pytest.raises(ValueError, match=r"jsonl:3: the list of causes C1 … C8 was not found.*to false"):
        asked_by(task(data=str(file), randomized_labels=True))


GOOD = '{"question": "q", "answer": "C1"}\n'


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", GOOD + '{"question": "q"', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", GOOD + "\n[1]", r"a\.jsonl:3: not an object but \[1\]"),
        ("a.jsonl", GOOD + '{"answer": "C1"}', "jsonl:2: there is no field 'question'"),
        ("a.jsonl", GOOD + '{"question": "q", "answer": null}', "jsonl:2: the field 'answer' has no value"),
        (
            "a.jsonl",
            GOOD + '{"question": " ", "answer": "C1"}',
            "jsonl:2: the field 'question' is empty",
        ),
        (
            "a.jsonl",
            GOOD + '{"question": "q", "answer": 3}',
            "jsonl:2: the field 'answer' must be text, not 3",
        ),
        (
            "a.jsonl",
            GOOD + '{"question": "q", "answer": "C9"}',
            "jsonl:2: the answer 'C9' is not one of C1 … C8",
        ),
        ("a.jsonl", b"\xff\xfe{}", r"a\.jsonl:1: byte 1 is not UTF-8"),
        ("a.json", '{"question": "q"}', r"a\.json:1: there is no field 'answer'"),
        ("a.json", "[", r"a\.json, row 1: not JSON"),
        ("a.csv", "question,answer\nq,C1\nq,\n", "row 2: the field 'answer' is empty"),
        ("a.csv", "question,label\nq,C1\n", "row 1: there is no field 'answer'"),
        ("a.parquet", b"no parquet", r"a\.parquet cannot be read \(Arrow"),
        ("a.txt", "q", r"a\.txt: the name of a data file ends in \.jsonl"),
    ],
)
def test_a_mistake_in_the_data_is_one_line_with_its_location(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str | bytes, complaint: str
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=complaint) as raised:
        task(data=str(file)).problems("train")
    assert len(str(raised.value).splitlines()) == 1


def test_missing_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        task(data=str(tmp_path / "none.jsonl")).problems("train")
    with pytest.raises(ValueError, match="doesn't contain any data files"):
        task(data=str(tmp_path)).problems("train")


def test_both_splits_are_loaded_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "train.jsonl", ROWS[:30])
    write_jsonl(tmp_path / "test.jsonl", ROWS[30:])
    serve_as_hub(monkeypatch, {"netop/TeleLogs": tmp_path})
    built = task(data="netop/TeleLogs")
    assert [p.question for p in built.problems("eval")] == [row["question"] for row in ROWS[30:]]


def test_a_refusal_of_the_hub_is_one_line_with_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, subset: str | None) -> None:
        raise RuntimeError("gated\nrepository")

    monkeypatch.setattr("datasets.load_dataset_builder", refuse)
    with pytest.raises(
        ValueError, match=r"netop/TeleLogs cannot be read.*gated repository.*log in"
    ) as raised:
        task(data="netop/TeleLogs").problems("train")
    assert len(str(raised.value).splitlines()) == 1
