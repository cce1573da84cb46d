"""Puzzles of a data set like the published one: each appears once, in one split, in any order of its numbers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from reward.tasks.countdown.puzzles import difficulty_of
from reward.tasks.countdown.task import CountdownOptions, CountdownTask


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def task(path: Path, rows: list[Any], **options: Any) -> CountdownTask:
    return CountdownTask(CountdownOptions(data=write(path / "puzzles.jsonl", rows), **options))


def drawn(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {"target": rng.randrange(10, 100), "nums": [rng.randrange(1, 30) for _ in range(rng.choice([3, 4]))]}
        for _ in range(count)
    ]


rows = st.lists(
    st.fixed_dictionaries(
        {"target": st.integers(1, 4), "nums": st.lists(st.integers(0, 4), min_size=1, max_size=4)}
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60)
@given(rows=rows, fraction=st.floats(0.05, 0.95), seed=st.integers(0, 5))
def test_no_puzzle_is_in_both_splits_and_none_is_lost(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], fraction: float, seed: int
) -> None:
    built = task(tmp_path_factory.mktemp("data"), rows, eval_fraction=fraction, seed=seed)
    train, evaluation = ([p.key for p in built.problems(split)] for split in ("train", "eval"))
    assert not set(train) & set(evaluation)
    wanted = {(tuple(sorted(row["nums"])), row["target"]) for row in rows}
    assert len(train) + len(evaluation) == len({*train, *evaluation}) == len(wanted)


def test_a_split_depends_on_the_puzzle_alone(tmp_path: Path) -> None:
    there, back = task(tmp_path, drawn(200)), task(tmp_path, drawn(200)[::-1], seed=3)
    for split in ("train", "eval"):
        assert {p.key for p in there.problems(split)} == {p.key for p in back.problems(split)}
    assert [p.key for p in there.problems("train")] != [p.key for p in back.problems("train")]


def test_a_note_says_how_many_puzzles_are_repeated(tmp_path: Path) -> None:
    twice = [*drawn(5), {"target": 24, "nums": [1, 2, 3]}, {"target": 24, "nums": [3, 1, 2]}]
    (note,) = task(tmp_path, twice).notes()
    assert "1 of 7 rows repeat an earlier puzzle (in any order)" in note
    assert note.endswith("the first is puzzles.jsonl:7")
    assert CountdownTask(CountdownOptions()).notes() == ()


def test_the_options_select_puzzles(tmp_path: Path) -> None:
    built = task(tmp_path, drawn(300), numbers=3, train_puzzles=20, orders_per_puzzle=2)
    selected = built.problems("train")
    assert len({p.key for p in selected}) == 20
    assert len(selected) > 30
    assert {len(p.numbers) for p in selected} == {3}
    easy = task(tmp_path, drawn(300), difficulty="easy").problems("train")
    assert easy
    assert {difficulty_of(p) for p in easy} == {"easy"}
    assert {built.category(p) for p in easy} == {"3 numbers, easy", "4 numbers, easy"}


@pytest.mark.parametrize(
    ("row", "mistake"),
    [
        ({"nums": [1, 2]}, "there is no field 'target' (fields: nums)"),
        ({"target": 3}, "there is no field 'nums' (fields: target)"),
        ({"target": "3", "nums": [1, 2]}, "'target' must be a whole number, not '3'"),
        ({"target": True, "nums": [1, 2]}, "'target' must be a whole number, not True"),
        (
            {"target": 3, "nums": "1 2"},
            "'nums' must be a list of whole numbers, none of them negative, not '1 2'",
        ),
        ({"target": 3, "nums": []}, "the field 'nums' is empty"),
        ({"target": 3, "nums": [1, -2]}, "'nums' must be a list"),
        ({"target": 3, "nums": [1, 2.0]}, "'nums' must be a list"),
    ],
)
def test_a_row_that_is_not_a_puzzle_is_reported_in_one_line(
    tmp_path: Path, row: dict[str, Any], mistake: str
) -> None:
    with pytest.raises(ValueError, match=r".+") as refusal:
        task(tmp_path, [*drawn(2), row]).problems("train")
    assert str(refusal.value).startswith(f"puzzles.jsonl:3: {mistake}")
    assert "\n" not in str(refusal.value)


def test_options_of_the_generator_are_refused_together_with_data() -> None:
    with pytest.raises(
        ValidationError, match="number_max, target_min: these options select generated puzzles"
    ):
        CountdownOptions(data="puzzles.jsonl", number_max=30, target_min=5)
