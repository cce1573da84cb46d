"""Puzzles, solver, prompts and warm-up examples."""

import itertools
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward.tasks.countdown import starter
from reward.tasks.countdown.puzzles import (
    Difficulty,
    Puzzle,
    Split,
    chat_prompt,
    compact_prompt,
    generate_puzzles,
    in_several_orders,
    split_of,
)
from reward.tasks.countdown.solver import MAX_NUMBERS, OPERATORS, expressions, reachable_values, solutions
from reward.tasks.countdown.starter import COMPACT_CHARACTERS, warmup_examples
from reward.tasks.countdown.task import CountdownOptions, CountdownTask
from reward.tasks.countdown.verifier import extract_answer, verify

# More pairs than are listed, but so alike that few of them reach a given target.
TOO_MANY_SETS = {"number_max": 99}  # 171,700 of them, or 4,960 from 70 up
SPLITS: tuple[Split, Split] = ("train", "eval")


def brute_force(numbers: tuple[int, ...]) -> set[Fraction]:
    """Return every reachable value, by combining any two of a list until one is left."""
    if len(numbers) == 1:
        return {Fraction(numbers[0])}
    found = set()

    def combine(values: list[Fraction]) -> None:
        if len(values) == 1:
            found.add(values[0])
        for i, j in itertools.permutations(range(len(values)), 2):
            rest = [value for k, value in enumerate(values) if k not in (i, j)]
            a, b = values[i], values[j]
            for combined in (a + b, a - b, a * b, *([a / b] if b else [])):
                combine([*rest, combined])

    combine([Fraction(number) for number in numbers])
    return found


few_numbers = st.lists(st.integers(0, 12), min_size=1, max_size=3).map(tuple)


@given(few_numbers)
def test_the_solver_agrees_with_brute_force(numbers: tuple[int, ...]) -> None:
    assert reachable_values(numbers) == brute_force(numbers) == set(expressions(numbers).values())


def test_the_solver_agrees_with_brute_force_on_four_numbers() -> None:
    assert reachable_values((3, 3, 8, 8)) == brute_force((3, 3, 8, 8))
    assert solutions((3, 3, 8, 8), 24) == ["8/(3-8/3)"]


def test_expressions_have_no_needless_parentheses() -> None:
    orders = list(itertools.permutations("123"))
    sums = ["+".join(order) for order in orders]
    products = ["*".join(order) for order in orders]
    quotients = ["2/1*3", "2*3/1", "3*2/1", "3/1*2", "2/(1/3)", "3/(1/2)"]
    assert sorted(solutions((1, 2, 3), 6)) == sorted([*sums, *products, *quotients])


def test_the_solver_refuses_what_it_cannot_list() -> None:
    with pytest.raises(ValueError, match=f"1 to {MAX_NUMBERS} numbers"):
        solutions((1,) * (MAX_NUMBERS + 1), 1)


@pytest.mark.parametrize("numbers", [(), (3, -1)])
def test_a_puzzle_needs_numbers_without_a_sign(numbers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="none of them negative"):
        Puzzle(numbers, 3)


def test_the_key_ignores_the_order() -> None:
    assert Puzzle((7, 3, 10), 38).key == Puzzle((10, 7, 3), 38).key == "3 7 10 = 38"


# Once by listing the space, once by sampling it.
@pytest.mark.parametrize("number_max", [9, 30])
def test_generated_puzzles_are_solvable_different_and_split(number_max: int) -> None:
    drawn = {split: generate_puzzles(split, 150, 7, number_max=number_max, target_max=60) for split in SPLITS}
    for split, puzzles in drawn.items():
        assert len({puzzle.key for puzzle in puzzles}) == len(puzzles) == 150
        for puzzle in puzzles:
            assert split_of(puzzle) == split
            assert puzzle.target in reachable_values(puzzle.numbers)
            assert 1 <= puzzle.target <= 60
            assert len(puzzle.numbers) == 3
            assert 1 <= min(puzzle.numbers) <= max(puzzle.numbers) <= number_max
    assert not {puzzle.key for puzzle in drawn["train"]} & {puzzle.key for puzzle in drawn["eval"]}


@pytest.mark.parametrize("number_max", [9, 30])
def test_a_seed_decides_everything_and_only_itself(number_max: int) -> None:
    first, again, other = (generate_puzzles("train", 50, seed, number_max=number_max) for seed in (1, 1, 2))
    assert first == again != other


def test_a_listed_space_is_complete() -> None:
    everything = {
        Puzzle(numbers, int(value)).key
        for numbers in itertools.combinations_with_replacement(range(1, 5), 3)
        for value in brute_force(numbers)
        if value.denominator == 1 and 0 <= value <= 20
    }
    parts = [generate_puzzles(s, None, 0, number_max=4, target_min=0, target_max=20) for s in SPLITS]
    assert sorted(puzzle.key for part in parts for puzzle in part) == sorted(everything)


def test_the_splits_are_the_same_in_every_process() -> None:
    code = "from reward.tasks.countdown.puzzles import *; print([p.key for p in generate_puzzles('eval', 20, 3)])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str([puzzle.key for puzzle in generate_puzzles("eval", 20, 3)])
    # Fixed values, because a change of the hash would leak eval puzzles into training.
    assert split_of(Puzzle((3, 5, 7), 38)) == "train"


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_the_eval_fraction_is_kept(fraction: float) -> None:
    evaluation, train = (len(generate_puzzles(s, None, 0, eval_fraction=fraction)) for s in reversed(SPLITS))
    assert evaluation / (evaluation + train) == pytest.approx(fraction, abs=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 300, "number_max": 3}, r"there are only \d+: widen the range of numbers"),
        ({"count": 99, "number_min": 70, "target_max": 1, **TOO_MANY_SETS}, r"only \d+ were found"),
        ({"count": None, **TOO_MANY_SETS}, "set task.options.train_puzzles and eval_puzzles"),
        ({"count": -1}, "must not be negative"),
        ({"number_min": 5, "number_max": 4}, "number_min <= number_max"),
        ({"number_min": -5}, "number_min <= number_max"),
        ({"numbers": 0}, "numbers >= 1"),
        ({"target_min": 5, "target_max": 4}, "target_min <= target_max"),
        ({"eval_fraction": 1.5}, "eval_fraction"),
        ({"split": "test"}, "split must be"),
    ],
)
def test_impossible_requests_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_puzzles(**({"split": "train", "count": 10, "seed": 0} | arguments))  # type: ignore[arg-type]


def test_prompts_state_the_puzzle() -> None:
    puzzle = Puzzle((7, 3, 5), 38)
    assert compact_prompt(puzzle) == "7 3 5 = 38\n"
    (message,) = chat_prompt(puzzle)
    assert message["role"] == "user"
    assert "7, 3, 5" in message["content"]
    assert "38" in message["content"]
    assert extract_answer(message["content"]) is not None, "the prompt shows the form of an answer"


def test_the_example_in_the_chat_prompt_is_well_formed() -> None:
    assert verify(chat_prompt(Puzzle((7, 3), 38))[0]["content"], Puzzle((1, 2, 3), 1)).correct


def test_warmup_examples_are_well_formed_and_mostly_incorrect() -> None:
    puzzles = generate_puzzles("train", None, 0)
    by_prompt = {compact_prompt(puzzle): puzzle for puzzle in puzzles}
    examples = warmup_examples(puzzles, 2000, 0, correct_fraction=0.2, max_tries=3, repeat_fraction=0.5)
    correct = 0
    line_counts = set()
    for prompt, response in examples:
        puzzle = by_prompt[prompt]
        verdict = verify(response, puzzle)
        assert verdict.correct or verdict.reason.startswith("has the value")
        text = (prompt + response).replace("<answer>", "").replace("</answer>", "")
        assert set(text) <= set(COMPACT_CHARACTERS)
        *tries, answer = response.split("\n")
        line_counts.add(len(tries))
        assert answer.startswith("<answer>")
        for line in tries:
            expression, _, value = line.rpartition("=")
            assert verify(f"<answer>{expression}</answer>", Puzzle(puzzle.numbers, int(value))).correct
        correct += verdict.correct
    assert line_counts == {0, 1, 2, 3}
    assert 0.2 < correct / len(examples) < 0.3


@pytest.mark.parametrize(("fraction", "least", "most"), [(0.0, 0.04, 0.08), (0.5, 0.45, 0.55)])
def test_the_options_decide_how_often_the_starter_is_shown_a_correct_answer(
    fraction: float, least: float, most: float
) -> None:
    """Without any, one expression in 17 has the value of the target by accident."""
    options = CountdownOptions(
        train_puzzles=300,
        number_min=10,
        number_max=30,
        target_max=60,
        starter_correct_fraction=fraction,
        starter_tries=2,
    )
    task = CountdownTask(options)
    by_prompt = {compact_prompt(puzzle): puzzle for puzzle in task.problems("train")}
    examples = task.starter_examples()[:4000]
    correct = sum(verify(response, by_prompt[prompt]).correct for prompt, response in examples)
    assert least < correct / len(examples) < most
    assert {response.count("\n") for _, response in examples} == {0, 1, 2}


@pytest.mark.parametrize("kept", [0, 100, 10_000])
def test_warmup_examples_do_not_depend_on_what_is_kept(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    puzzles = generate_puzzles("train", 5, 0)
    expected = warmup_examples(puzzles, 50, 1, max_tries=2)
    enumerated = []
    monkeypatch.setattr(starter, "KEPT_EXPRESSIONS", kept)
    monkeypatch.setattr(
        starter, "expressions", lambda numbers: enumerated.append(numbers) or expressions(numbers)
    )
    assert warmup_examples(puzzles, 50, 1, max_tries=2) == expected
    assert (len(enumerated) == len(set(enumerated))) == (kept == 10_000)


def test_warmup_examples_follow_their_seed() -> None:
    puzzles = generate_puzzles("train", 100, 0)
    first, again, other = (warmup_examples(puzzles, 50, seed, max_tries=2) for seed in (1, 1, 2))
    assert first == again != other


def test_warmup_refuses_eval_puzzles_and_invalid_arguments() -> None:
    with pytest.raises(ValueError, match="eval split"):
        warmup_examples([*generate_puzzles("train", 5, 0), *generate_puzzles("eval", 1, 0)], 10, 0)
    with pytest.raises(ValueError, match="at least one puzzle"):
        warmup_examples([], 10, 0)
    with pytest.raises(ValueError, match="correct_fraction"):
        warmup_examples(generate_puzzles("train", 5, 0), 10, 0, correct_fraction=2.0)


@pytest.mark.parametrize("number_max", [9, 60], ids=["listed", "sampled"])
@pytest.mark.parametrize("difficulty", ["easy", "medium", "hard"])
def test_difficulty_is_which_operators_it_takes(difficulty: Difficulty, number_max: int) -> None:
    """Seen in the list of all solutions, which is made in another way."""
    suffices, does_not = {"easy": ("+-", ""), "medium": ("+-*", "+-"), "hard": ("+-*/", "+-*")}[difficulty]
    puzzles = generate_puzzles("train", 60, seed=1, number_max=number_max, difficulty=difficulty)
    assert len({puzzle.key for puzzle in puzzles}) == 60
    for puzzle in puzzles:
        used = [set(text) & set(OPERATORS) for text in solutions(puzzle.numbers, puzzle.target)]
        assert any(found <= set(suffices) for found in used)
        assert not any(found <= set(does_not) for found in used)


def test_the_difficulties_together_are_all_puzzles() -> None:
    of_each = [
        {p.key for p in generate_puzzles("train", None, 0, difficulty=difficulty)}
        for difficulty in ("easy", "medium", "hard")
    ]
    assert sum(map(len, of_each)) == len(set().union(*of_each)) == len(generate_puzzles("train", None, 0))
    assert min(map(len, of_each)) > 200


def test_orders_of_a_puzzle_are_different_prompts_of_the_same_split() -> None:
    puzzles = generate_puzzles("train", 50, seed=0)
    reordered = in_several_orders(puzzles, orders=4, seed=0)
    assert len(set(reordered)) == len(reordered)
    assert {puzzle.key for puzzle in reordered} == {puzzle.key for puzzle in puzzles}
    assert all(split_of(puzzle) == "train" for puzzle in reordered)
    for puzzle in puzzles:
        possible = len(set(itertools.permutations(puzzle.numbers)))
        assert sum(other.key == puzzle.key for other in reordered) == min(4, possible)
