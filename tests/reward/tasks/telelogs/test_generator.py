"""Generated problems: their seed decides them, the definitions of the causes solve them, the stated cause is the real
one, and no superficial feature reveals it."""

from __future__ import annotations

import ast
import bisect
import functools
import math
import pickle
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from reward.tasks.telelogs import parsing, solver
from reward.tasks.telelogs.causes import LABELS, LOW_THROUGHPUT_MBPS
from reward.tasks.telelogs.checks import only_cause, repaired, symptom_in
from reward.tasks.telelogs.drive import drive
from reward.tasks.telelogs.generator import GeneratedProblems, GeneratorOptions, Style, generate
from reward.tasks.telelogs.outline import Size, draw_outline
from reward.tasks.telelogs.parsing import ReadQuestion, ReadRow, read_question
from reward.tasks.telelogs.problem import Problem, Split, split_of
from reward.tasks.telelogs.scenario import draw_scenario
from reward.tasks.telelogs.solver import solve
from reward.tasks.telelogs.starter import ANSWER_TAGS, COMPACT_CHARACTERS

STYLES: tuple[Style, ...] = ("full", "compact", "compact_chat")
SIZES: tuple[Size, ...] = ("full", "compact")


@functools.cache
def problems(style: Style, count: int, randomized: bool = False) -> list[Problem]:
    return list(GeneratedProblems(GeneratorOptions("train", style, randomized, seed=11), count))


# --- Solvable


def assert_solved(drawn: Sequence[Problem]) -> None:
    """Check that at least 99 % are solved; otherwise the message says which causes are confused."""
    confused: Counter[tuple[str, str]] = Counter()
    for problem in drawn:
        predicted = solve(problem.question)
        if predicted != problem.answer:
            taken_for = read_question(problem.question).options[predicted] if predicted else "none"
            confused[problem.cause, taken_for] += 1
    asked_of = Counter(problem.cause for problem in drawn)
    assert confused.total() <= 0.01 * len(drawn), "\n".join(
        f"{cause} taken for {taken_for}: {count} of {asked_of[cause]}"
        for (cause, taken_for), count in confused.most_common()
    )


@pytest.mark.parametrize(
    ("style", "randomized", "count"),
    [("full", False, 800), ("full", True, 400), ("compact", False, 800), ("compact", True, 400)],
)
def test_the_rules_find_the_cause(style: Style, randomized: bool, count: int) -> None:
    assert_solved(problems(style, count, randomized))


def test_the_rules_find_the_cause_in_the_words_for_small_instruct_models() -> None:
    assert_solved(problems("compact_chat", 160, randomized=True))


def test_the_solver_knows_nothing_of_the_generator() -> None:
    """The solver may import only the definitions of the causes and the parser of prompts, and so may these two."""
    known = {"reward.tasks.telelogs", "reward.tasks.telelogs.causes", "reward.tasks.telelogs.parsing"}
    for module in (solver, parsing):
        assert module.__file__ is not None
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name for name in names if name.startswith(("reward", "cluster"))} <= known


# --- Caused


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("label", LABELS)
def test_the_throughput_is_low_because_of_the_one_cause(label: str, size: Size) -> None:
    """It is low in the section only, no other cause holds, and without the cause it would not be low."""
    for seed in range(10):
        rng = random.Random(seed)
        outline = draw_outline(size, rng)
        scenario, rows = draw_scenario(label, outline, rng)
        assert symptom_in(rows, outline.low_rows)
        assert only_cause(label, scenario.cells, rows)
        without = drive(repaired(scenario, label, outline.low_rows))
        settled = without[outline.approach_rows + 2 :]  # a single handover costs two seconds
        assert min(row.throughput_mbps for row in settled) > LOW_THROUGHPUT_MBPS


# --- Decided by the seed


def test_a_problem_is_decided_by_seed_split_and_index() -> None:
    for style in STYLES:
        options = GeneratorOptions("train", style, seed=3)
        assert [generate(options, i) for i in range(8)] == [generate(options, i) for i in reversed(range(8))][
            ::-1
        ]
    assert generate(GeneratorOptions("train"), 0) != generate(GeneratorOptions("train", seed=1), 0)


def test_generated_problems_are_a_picklable_sequence() -> None:
    drawn = GeneratedProblems(GeneratorOptions("train", "compact"), 12)
    listed = list(drawn)
    assert (len(drawn), len(listed)) == (12, 12)
    assert drawn[-1] == listed[11]
    assert drawn[2:10:3] == listed[2:10:3]
    assert pickle.loads(pickle.dumps(drawn))[5] == listed[5]
    with pytest.raises(IndexError):
        drawn[12]


@pytest.mark.parametrize("style", STYLES)
def test_train_and_eval_share_no_prompt_for_any_seeds(style: Style) -> None:
    drawn = {
        split: {
            problem.question
            for seed in (0, 1)
            for problem in GeneratedProblems(GeneratorOptions(split, style, seed=seed), 64)
        }
        for split in ("train", "eval")
    }
    assert not drawn["train"] & drawn["eval"]
    assert {len(questions) for questions in drawn.values()} == {128}


@pytest.mark.parametrize("split", ["train", "eval"])
def test_a_site_belongs_to_one_split_whatever_the_seed(split: Split) -> None:
    """The site's id alone decides, so that no eval network is ever trained on."""
    for seed in (0, 1):
        for problem in GeneratedProblems(GeneratorOptions(split, seed=seed), 24):
            for cell in read_question(problem.question).cells.values():
                assert split_of(cell.site, 0.1) == split


# --- Features that must not reveal the cause


def test_all_causes_are_equally_frequent() -> None:
    assert set(Counter(problem.cause for problem in problems("compact", 80)).values()) == {10}


def test_the_position_of_the_correct_label_reveals_nothing() -> None:
    drawn = problems("compact", 400, randomized=True)
    places = Counter(problem.labels.index(problem.answer) for problem in drawn)
    assert places.most_common(1)[0][1] < 0.25 * len(drawn)


def full_features(question: str) -> dict[str, float]:
    """Return features that can be seen without any understanding."""
    lines = [line.split("|") for line in question.splitlines() if line.count("|") > 10]
    split = next(i for i, fields in enumerate(lines) if fields[0] == "gNodeB ID")
    rows, cells = lines[1:split], lines[split + 1 :]
    (index,) = (i for i, cell in enumerate(cells) if cell[10] == rows[-1][4])
    return {
        "length": len(question),
        "cells": len(cells),
        "sites": len({cell[0] for cell in cells}),
        "missing": question.count("|-|"),
        "first PCI": int(rows[0][4]),
        "last PCI": int(rows[-1][4]),
        "first cell's PCI": int(cells[0][10]),
        "index of the serving cell": index,
        "number of the serving cell": int(cells[index][1]),
        "second": float(rows[0][0][-9:]),
        "longitude": float(rows[0][1]),
        "gNodeB": int(cells[0][0]),
    }


def compact_features(question: str) -> dict[str, float]:
    before, _, after = question.partition("\ndrive\n")
    cells = [line.split() for line in before.partition("\ncells\n")[2].splitlines()]
    rows = [line.split() for line in after.splitlines()]
    return {
        "length": len(question),
        "missing": question.count("--"),
        "first PCI": int(rows[0][1]),
        "first cell's PCI": int(cells[0][0]),
        "first site": ord(cells[0][1]),
        "height": int(cells[0][3]),
        "index of the serving cell": [cell[0] for cell in cells].index(rows[-1][1]),
    }


def accuracy_of_naive_bayes(rows: Sequence[Mapping[str, float]], causes: Sequence[str]) -> float:
    """Return the accuracy on the second half after training on the first, with ten bins per feature."""
    half = len(rows) // 2
    scores = [dict.fromkeys(LABELS, 0.0) for _ in rows[half:]]
    for name in rows[0]:
        values = sorted(row[name] for row in rows[:half])
        edges = [values[half * k // 10] for k in range(1, 10)]
        seen: dict[int, Counter[str]] = defaultdict(Counter)
        for row, cause in zip(rows[:half], causes[:half], strict=True):
            seen[bisect.bisect(edges, row[name])][cause] += 1
        for score, row in zip(scores, rows[half:], strict=True):
            part = seen[bisect.bisect(edges, row[name])]
            for label in LABELS:
                score[label] += math.log((part[label] + 1) / (part.total() + len(LABELS)))
    predicted = [max(score, key=lambda label: score[label]) for score in scores]
    return sum(a == b for a, b in zip(predicted, causes[half:], strict=True)) / len(predicted)


@pytest.mark.parametrize(("style", "features"), [("full", full_features), ("compact", compact_features)])
def test_superficial_features_reveal_almost_nothing(
    style: Style, features: Callable[[str], Mapping[str, float]]
) -> None:
    """Chance is 0.125. The length of a full prompt reveals weak signals slightly: -100.00 has one digit more."""
    drawn = problems(style, 800)
    seen = [features(problem.question) for problem in drawn]
    causes = [problem.cause for problem in drawn]
    assert accuracy_of_naive_bayes(seen, causes) < 0.25
    told = [{**row, "answer": LABELS.index(cause)} for row, cause in zip(seen, causes, strict=True)]
    assert accuracy_of_naive_bayes(told, causes) > 0.9, "otherwise this classifier could not find anything"


# --- Their form


def test_full_questions_are_as_long_as_the_published_ones() -> None:
    for problem in problems("full", 800)[:160]:
        assert 4300 <= len(problem.question) <= 5300
        read = read_question(problem.question)
        assert len(read.rows) == 10
        assert 6 <= len(read.cells) <= 8
        tables = [line for line in problem.question.splitlines() if line.count("|") > 10]
        assert {line.count("|") for line in tables} == {18, 13}, "19 and 14 columns"


@pytest.mark.parametrize("randomized", [False, True])
def test_compact_questions_are_short_and_of_few_characters(randomized: bool) -> None:
    drawn = problems("compact", 160, randomized)
    assert set("".join(problem.question for problem in drawn)) <= set(COMPACT_CHARACTERS)
    assert max(len(problem.question) for problem in drawn) < 400
    assert set("".join(label for problem in drawn for label in problem.labels)) <= set(COMPACT_CHARACTERS)
    assert ANSWER_TAGS == ("\\boxed{", "}")


def test_a_number_of_a_compact_question_has_always_the_same_width() -> None:
    assert len({len(problem.question) for problem in problems("compact", 80)}) == 1


def test_serving_cells_are_listed_and_missing_values_are_minus_signs() -> None:
    drawn = problems("full", 80)
    for problem in drawn:
        read = read_question(problem.question)
        heard = {row.serving for row in read.rows} | {pci for row in read.rows for pci, _ in row.neighbours}
        assert heard <= set(read.cells)
    assert any("|-|" in problem.question for problem in drawn)


def test_features_that_look_like_another_cause_occur() -> None:
    """Otherwise one column would reveal the cause. The features are a weak neighbour with the same PCI modulo 30, one
    close neighbour, a near cell with a large downtilt, and a far cell that does not serve."""
    drawn = [(problem.cause, read_question(problem.question)) for problem in problems("full", 800)[:160]]

    def in_rows_without(label: str) -> Iterator[tuple[ReadQuestion, ReadRow]]:
        return ((read, row) for cause, read in drawn if cause != label for row in read.rows)

    assert any(pci % 30 == row.serving % 30 for _, row in in_rows_without("C6") for pci, _ in row.neighbours)
    assert any(
        abs(dbm - row.rsrp_dbm) < 6 and read.cells[pci].site != read.cells[row.serving].site
        for read, row in in_rows_without("C4")
        for pci, dbm in row.neighbours
    )
    assert any(read.cells[row.serving].tilt_deg > 12 for read, row in in_rows_without("C1"))
    assert any(
        parsing.great_circle_m(cell.position, row.position) > 1000
        for read, row in in_rows_without("C2")
        for cell in read.cells.values()
        if cell.position and row.position
    )
