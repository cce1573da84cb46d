"""Answers are correct if they mean the same as the reference, and no answer is correct for everything.

The corpus (`benchmarks/math_corpus`) has pairs of a reference and a response with the correct verdict, in the forms
that data sets and models show. `unseen.jsonl` and `unseen_later.jsonl` were written separately, and were not looked at
while the comparison was written. `benchmarks/math_verdicts.py` runs the larger counts.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from benchmarks import math_canary, math_verdicts
from benchmarks.math_verdicts import PARTS, Pair, pairs
from reward.tasks.math.answers import last_answer
from reward.tasks.math.cleaning import clean
from reward.tasks.math.comparison import equal

UNDEFINED_WITH_ZERO = (
    *(r"\frac{1}{0}", r"\frac{x}{0}", r"x+\frac{1}{0}", r"\frac{0}{0}", "(0)^{0}", r"\log(0)"),
    *(r"(0)^{-2}", r"\frac{1}{0}-\frac{1}{0}"),
)
ANSWERS = 120
"""The number of answers of the grammar that are compared with each reference here."""


@pytest.fixture(scope="module")
def verdicts() -> dict[Pair, bool]:
    """Return the verdicts on the whole corpus, which take half a minute."""
    return math_verdicts.verdicts_on_corpus()


# The target for all parts is 0.995. The parts that were not looked at do not reach it.
@pytest.mark.parametrize(("part", "recall"), [("seen", 0.995), ("unseen", 0.99), ("unseen_later", 0.97)])
def test_precision_and_recall_on_the_corpus(part: str, recall: float, verdicts: dict[Pair, bool]) -> None:
    count = Counter((verdicts[pair], pair.correct) for pair in pairs(part))
    assert count.total() >= 200
    assert count[True, False] == 0, "wrongly accepted"
    assert count[True, True] / (count[True, True] + count[False, True]) >= recall


def test_no_answer_is_correct_for_references_that_differ() -> None:
    chance = random.Random(0)
    assert len(math_canary.REFERENCES) >= 200
    assert all(reference in math_canary.hits(reference) for reference in math_canary.REFERENCES)
    answers = [math_canary.answer(chance) for _ in range(ANSWERS)]
    assert not {text: found for text in answers if (found := math_canary.too_many(text))}


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "|3/7/0|",
            "|3/7/0| + 1",
            "5 - |1/3/0|",
            r"|\infty|",
            r"|\log(0)|",
            r"\left|\frac{\frac37}{0}\right|",
        ),
        *(
            r"|\pi/0|",
            "x = |3/7/0|",
            r"\{|3/7/0|\}",
            r"\frac{1}{0}",
            r"0 \cdot \frac{1}{0}",
            r"\frac{0}{0}",
            "0^0",
        ),
        *(
            r"\begin{pmatrix} |1/0| \\ 1 \end{pmatrix}",
            r"\frac{1}{x-x}",
            r"\tan(\frac{\pi}{2})",
            r"\arg(\sin(\pi))",
        ),
        *(shape.replace("0", zero) for zero in math_canary.ZEROS for shape in UNDEFINED_WITH_ZERO),
    ],
)
def test_an_undefined_value_equals_no_reference(answer: str) -> None:
    """Some zeros differ from zero by rounding errors, which must not be divided by."""
    assert math_canary.hits(answer) == []


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (r"\lfloor\sqrt{2}\cdot\sqrt{2}\rfloor", "2"),
        (r"(\sqrt{3})^{2} \mod 3", "0"),
        (r"7+\sin(\pi)", "7"),
        (r"\frac{1}{\sqrt{2}\cdot 10^{-30}}", r"5\sqrt{2}\cdot 10^{29}"),
    ],
)
def test_rounding_errors_do_not_change_a_value(answer: str, reference: str) -> None:
    assert equal(reference, answer)
    assert not equal(reference, f"{answer}+10^{{-40}}")


@pytest.mark.parametrize("part", PARTS)
def test_cleaning_twice_changes_nothing_more(part: str) -> None:
    for pair in pairs(part):
        for text in (pair.reference, last_answer(pair.response) or ""):
            assert clean(clean(text)) == clean(text)


def test_an_answer_equals_itself() -> None:
    """Whatever it is: identical texts are equal before anything is evaluated."""
    chance = random.Random(1)
    for _ in range(300):
        text = math_canary.answer(chance)
        assert equal(text, text) or not clean(text)


@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_verdicts_depend_on_the_two_texts_alone(every: int, verdicts: dict[Pair, bool]) -> None:
    """A process with another hash seed, which also computes them in another order, finds the same."""
    taken = {pair: verdicts[pair] for pair in math_verdicts.corpus_pairs(every)}
    assert math_verdicts.digest_in_process(hash_seed=1, every=every) == math_verdicts.digest(taken)


@pytest.mark.parametrize(
    "answer",
    [
        r"9^{9^{9^{9}}}",
        r"(10^{10})!!",
        r"\sin(10^{10^{8}})",
        r"\lfloor 9^{9^9} \rfloor",
        r"\sum_{n=1}^{10^{12}} n",
        r"\binom{10^9}{10^8}",
        "(" * 200 + "1" + ")" * 200,
        "|" * 300,
        r"\frac{" * 60 + "1" + "}{2}" * 60,
        "1+" * 150 + "1",
        r"\sqrt{" * 20 + "2" + "}" * 20,
        "2^{" * 20 + "2" + "}" * 20,
        r"\gcd(10^{400}, 7)",
        "x" * 350,
        r"\prod_{n=1}^{2000} n",
    ],
)
@pytest.mark.timeout(60)
def test_what_takes_long_to_compute_is_refused(answer: str) -> None:
    assert not equal("12", answer)
    assert equal(answer, answer)
