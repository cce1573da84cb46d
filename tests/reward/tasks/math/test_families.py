"""Families with a whole number as their parameter are equal if they have the same members."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reward.tasks.math.comparison import equal

LETTERS = ("k", "n", "m")
Class = tuple[int, int]
"""A remainder and a modulus."""


def members(classes: list[Class]) -> frozenset[int]:
    """Return the members up to 420, of which every modulus from 1 to 7 is a divisor."""
    return frozenset(number for number in range(420) if any(number % by == rest % by for rest, by in classes))


def family(classes: list[Class], letter: str, factor: str) -> str:
    parts = [f"{rest}{factor} {'-' if rest % 2 else '+'} {by}{letter}{factor}" for rest, by in classes]
    return rf"x = {' or x = '.join(parts)}, {letter}\in\mathbb{{Z}}"


def congruences(classes: list[Class]) -> str:
    return r" \text{ or } ".join(rf"x\equiv {rest} \pmod{{{by}}}" for rest, by in classes)


classes_of_one_modulus = st.integers(2, 7).flatmap(
    lambda by: st.lists(st.tuples(st.integers(-9, 9), st.just(by)), min_size=1, max_size=3)
)
some_classes = st.lists(st.tuples(st.integers(-9, 9), st.integers(2, 7)), min_size=1, max_size=3)


@settings(max_examples=20, deadline=None)
@given(some_classes, some_classes, st.sampled_from(LETTERS), st.sampled_from(("", r"\pi")))
@example([(1, 7), (-6, 2)], [(0, 2)], "k", r"\pi")
def test_families_are_equal_if_and_only_if_they_have_the_same_members(
    one: list[Class], other: list[Class], letter: str, factor: str
) -> None:
    reference = family(one, "k", factor)
    assert equal(reference, family(one[::-1], letter, factor))
    shifted = [(rest + 3 * by, by) for rest, by in one]
    assert equal(reference, family(shifted, letter, factor))
    halves = [(rest + by * half, 2 * by) for rest, by in one for half in (0, 1)]
    assert equal(reference, family(halves, letter, factor))
    assert equal(reference, family(other, letter, factor)) == (members(one) == members(other))


@settings(max_examples=20, deadline=None)
@given(classes_of_one_modulus, classes_of_one_modulus)
def test_congruences_are_families(one: list[Class], other: list[Class]) -> None:
    assert equal(congruences(one), family(one, "m", ""))
    same = members(one) == members(other)
    assert equal(congruences(one), congruences(other)) == same
    assert equal(family(one, "k", ""), congruences(other)) == same


@pytest.mark.parametrize(
    ("reference", "answer", "same"),
    [
        (
            r"\frac{\pi}{2}+k\pi, k\in\mathbb{Z}",
            r"\frac{(2n+1)\pi}{2} \text{ where } n \text{ is an integer}",
            True,
        ),
        (r"x=\pm\frac{\pi}{3}+2k\pi, k\in\mathbb{Z}", r"2n\pi\pm\frac{\pi}{3}\quad(n\in\mathbb{Z})", True),
        (
            r"x=(-1)^k\frac{\pi}{6}+k\pi, k\in\mathbb Z",
            r"\frac{\pi}{6}+2n\pi, \frac{5\pi}{6}+2n\pi, n\in\mathbb{Z}",
            True,
        ),
        (r"x=45^\circ+180^\circ k, k\in\mathbb{Z}", r"x=\frac{\pi}{4}+k\pi \text{ for any integer } k", True),
        (r"\{k\pi : k\in\mathbb{Z}\}", r"x=n\pi, n\in\mathbb{Z}", True),
        (r"k^2+k, k\in\mathbb{Z}", r"n(n+1), n\in\mathbb{Z}", True),
        (r"k^2, k\in\mathbb{Z}", r"n^3, n\in\mathbb{Z}", False),
        (r"k\pi, k\in\mathbb{Z}", r"k, k\in\mathbb{Z}", False),
        (r"k\pi+10^{-150}, k\in\mathbb{Z}", r"k\pi, k\in\mathbb{Z}", False),
        (r"\sqrt2 k, \sqrt3 k, k\in\mathbb{Z}", r"\sqrt2 k, k\in\mathbb{Z}", False),
        (r"x\equiv 3 \pmod 7", "x=7k+3", True),
        ("n=4k+1", r"n\equiv 1 \pmod 4", True),
        ("n=4k+1", r"n=4k+5, k\in\mathbb{Z}", False),
        ("2n+1", r"2n-1, n\in\mathbb{Z}", False),
        (r"2n+1, n\in\mathbb{Z}", "2n-1", True),
        (r"a_n=2n+1, n\in\mathbb{Z}", "a_n=2n-1", False),
        (r"x\equiv 3 \pmod 7", r"y\equiv 3 \pmod 7", False),
    ],
)
def test_families_in_other_words(reference: str, answer: str, same: bool) -> None:
    assert equal(reference, answer) == same


@pytest.mark.parametrize(
    ("number", "answer", "same"),
    [
        ("3", r"3 \pmod 7", True),
        ("3", r"10 \equiv 3 \pmod 7", True),
        ("3", r"11 \equiv 3 \pmod 7", False),
        ("10", r"3 \pmod 7", False),
        ("3", r"x \equiv 3 \pmod 7", False),
        ("3", r"7k+3, k\in\mathbb{Z}", False),
        ("3", r"3+0k, k\in\mathbb{Z}", False),
        ("3", r"10 \mod 7", True),
    ],
)
def test_a_number_is_no_family(number: str, answer: str, same: bool) -> None:
    assert equal(number, answer) == same
    assert equal(answer, number) == same


def test_many_classes_take_no_time() -> None:
    """The common period of 997 and 991 has too many residues to compare."""
    families = [
        family([(0, by), (1, other)], "k", "") for by, other in itertools.permutations((997, 991, 983), 2)
    ]
    assert not equal(families[0], families[1])
