"""Names that stand for anything may be renamed, and constants of integration may differ."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward.tasks.math.comparison import equal

FUNCTIONS = (
    "x^2",
    r"\sin x",
    r"e^{2x}",
    r"\ln|x|",
    r"\arctan x",
    r"\frac{1}{x+5}",
    r"\cos^2 x",
    r"x\sqrt{x^2+1}",
)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(FUNCTIONS), st.sampled_from(FUNCTIONS), st.integers(-9, 9).filter(bool))
def test_antiderivatives_are_equal_if_they_differ_by_a_constant(one: str, other: str, shift: int) -> None:
    reference = f"{one}+C"
    assert equal(reference, f"C+{one}{shift:+}")
    assert equal(reference, f"{one}{shift:+}+c")
    assert equal(reference, f"{other}{shift:+}+C") == (one == other)
    assert not equal(reference, f"{one}{shift:+}")
    assert not equal(reference, f"{one}{shift:+}x+C")
    assert not equal(f"{one}+c", f"{one}{shift:+}+c"), "`c` may be a number that is known"


@pytest.mark.parametrize(
    ("reference", "answer", "same"),
    [
        (r"\sin^2 x+C", r"-\frac12\cos 2x+C", True),
        (r"\arcsin x+C", r"-\arccos x+C", True),
        (r"\ln x+C", r"\ln(3x)+C", True),
        (r"\ln x+C", r"\ln|x|+C", False),
        (r"\arctan x+C", r"-\arctan\frac1x+C", False),
        (r"\frac{e^{ax}}{a}+C", r"\frac{e^{ax}}{a}+c", True),
        ("A+B+C", "A+B+C+1", False),
        ("a+b+C", "a+b+c", False),
        ("x^2+bx+c", "x^2+bx+c+1", False),
        ("x+C", "C", False),
        ("5+C", "3+C", False),
        ("5", "5+C", False),
        ("e^{x}+C", "e^{x+C}", False),
    ],
)
def test_only_a_constant_of_integration_may_take_up_a_difference(
    reference: str, answer: str, same: bool
) -> None:
    assert equal(reference, answer) == same
    assert equal(answer, reference) == same


@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from("ijkmr"),
    st.sampled_from("ijkmr"),
    st.sampled_from(("k^2", r"\frac{x^k}{k!}", "(2k+1)", r"\frac1k")),
)
def test_the_index_of_a_sum_may_be_renamed(one: str, other: str, term: str) -> None:
    for limits, kind in (("n", "sum"), (r"\infty", "sum"), ("n", "prod")):
        first, second = (
            rf"\{kind}_{{{name}=1}}^{{{limits}}} {term.replace('k', name)}" for name in (one, other)
        )
        assert equal(first, second), (first, second)
        assert not equal(first, second.replace("=1", "=3"))
        assert not equal(first, rf"2{second}")


@pytest.mark.parametrize(
    ("reference", "answer", "same"),
    [
        ("f(x)=x^2+1", "f(t)=t^2+1", True),
        ("f(x)=x^2+a", "f(a)=a^2+a", False),
        ("f(x)=x^2", "f(t)=x^2", False),
        ("f(x)=x+t", "f(t)=t+x", False),
        ("f(x)=3", "f(t)=3", True),
        (
            r"f(x)=0 \text{ and } f(x)=x",
            r"f(x)=x \text{ for all } x, \text{ or } f(x)=0 \text{ for all } x",
            True,
        ),
        (r"f(x)=cx \text{ for some constant } c", "f(x)=ax", True),
        (r"f(x)=cx \text{ for some constant } c", "f(x)=xy", False),
        (r"f(x)=cx \text{ for some constant } c", "f(x)=ax+b", False),
        ("f(x)=cx", "f(x)=ax", False),
        (r"y=Ce^{-2t}", r"y(t)=Ce^{-2t}, C\in\mathbb{R}", True),
        (r"y=Ce^{-2t}, C\in\mathbb{R}", r"y=ke^{-2t} \text{ where } k \text{ is a constant}", True),
        (r"y=C_1e^x+C_2e^{-x}, C_1,C_2\in\mathbb{R}", "y=Ae^{-x}+Be^x", True),
        (r"y=C_1e^x+C_2e^{-x}, C_1,C_2\in\mathbb{R}", "y=Ae^{-x}+Ae^x", False),
        (r"y=Ce^{-2t}, C\in\mathbb{R}", "z=Ce^{-2t}", False),
        (r"y=Ce^{-2t}, C\in\mathbb{R}", "y=3e^{-2t}", False),
        (r"x^2+1, x\in\mathbb{R}", "a^2+1", False),
    ],
)
def test_arguments_and_arbitrary_constants_are_only_names(reference: str, answer: str, same: bool) -> None:
    assert equal(reference, answer) == same
