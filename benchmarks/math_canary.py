"""References of all kinds, and a generator of answers that might be correct for too many of them.

The answers come from a grammar with zero, infinity, undefined operations, limits, lists and relations. `hits` returns
the references that an answer is correct for, and `too_many` those of an answer that is correct for different ones.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache

from reward.tasks.math.cleaning import clean, without_blanks
from reward.tasks.math.comparison import equal_forms
from reward.tasks.math.forms import Form
from reward.tasks.math.reading import read

REFERENCES: Sequence[str] = (
    *(str(number) for number in range(-20, 100)),
    *(f"{number}.5" for number in range(10)),
    *(rf"\frac{{{number}}}{{7}}" for number in range(1, 20) if number % 7),
    *(rf"\sqrt{{{number}}}" for number in (2, 3, 5, 6, 7, 10, 11, 13, 14, 15, 17, 19)),
    *(r"\pi", r"2\pi", "e", r"\frac{\pi}{3}", r"1+\sqrt2", r"\ln 2", r"\sqrt[3]{2}", r"\frac{1+\sqrt5}{2}"),
    *("x^2", "2x+1", "x", "y", r"\frac{x}{y}", "x=4", "y=2x", "x^2+y^2=1", "n(n+1)", r"\sin x", "2^n"),
    *("(1,2)", "(0,0)", "[0,1]", r"(0,\infty)", r"\{1,2\}", "1,2", r"(-\infty,1)\cup(3,\infty)", "x>3"),
    *(r"\begin{pmatrix}1\\2\end{pmatrix}", "3:4", "12:30", "2023-01-05", "10:00 p.m."),
    *(
        r"\text{yes}",
        "A",
        "B",
        r"\text{Monday}",
        "1011_2",
        "5 cm",
        "2 hours",
        r"50\%",
        r"\$12.40",
        r"30^\circ",
    ),
    *(
        "3+4i",
        "i",
        r"\infty",
        r"-\infty",
        "10^{20}",
        "2^{100}",
        r"\frac{1}{2^{99}}",
        "0.001",
        r"1, 2, \ldots, n",
    ),
    "twenty-four", "one hundred and five", "nine teams", r"0.\overline{4}", r"0.1666\ldots", "2:3", "4:9", "3:10",
    r"5 \mu m", "90 km/h", r"3\text{ m s}^{-2}", "1 kWh", "250 J", r"60^\circ", r"\frac{\pi}{6}\text{ radians}",
    r"\mathbb{R}", r"\mathbb{R}\setminus\{2\}", "(2,7]", "]2,7[", "|x|<1", r"|x|\ge 2", r"x\ne 2, 3", "-3<x<3",
    r"x=\frac{\pi}{4}+k\pi, k\in\mathbb{Z}", r"k\pi, k\in\mathbb{Z}", r"x\equiv 3 \pmod 7", r"3 \pmod 7", "n=4k+1",
    "x^2+C", r"\sin x+C", r"\ln|x|+C", r"y=Ce^{-2t}, C\in\mathbb{R}", r"f(x)=cx \text{ for some constant } c",
    r"\begin{cases} x & x\ge 0 \\ -x & x<0 \end{cases}", r"\begin{cases} 2x & x<1 \\ 3 & \text{otherwise} \end{cases}",
    r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", r"2\mathbf{i}-\mathbf{j}+3\mathbf{k}", "P(2,5)", "x=4, y=0 or x=0, y=4",
    r"\sum_{k=0}^{\infty}\frac{x^k}{k!}", "f(x)=x^2", r"\textbf{(B)} 12", "A, C", "no solution", "no real solution",
    r"\text{No}",
)  # fmt: skip
ZEROS = (r"\sin(\pi)", r"(\sqrt{2}\cdot\sqrt{2}-2)", r"(e^{i\pi}+1)", r"(\ln(e)-1)", r"\cos(\frac{\pi}{2})")
"""Expressions whose value is zero, but differs from it by rounding errors."""
_ATOMS = (
    "0",
    "1",
    "2",
    "3",
    "7",
    "-1",
    "0.5",
    "10",
    "100",
    r"\infty",
    r"\pi",
    "x",
    "nan",
    "e",
    "i",
    "9^9",
    "0",
    *ZEROS,
    "k", "C", "t", "-3", "nine", "twenty", r"\mathbb{R}", r"\emptyset", "none", r"\mathbf{i}", r"\mathbf{j}", "B",
    "x^2", "no",
)  # fmt: skip
_SHAPES = (
    "|{}|", r"\frac{{{}}}{{{}}}", "{}/{}", "{}/{}/{}", "({})+({})", "({})-({})", r"{} \cdot {}", r"\log({})",
    r"\max({},{})", r"\lim_{{x\to {}}} {}", r"\sqrt{{{}}}", "({})^{{{}}}", r"\tan({})", "({})!", r"\lfloor {} \rfloor",
    r"\left|{}\right|", "x = {}", r"{} \text{{ or }} {}", "{}, {}", r"\pm {}", "({}, {})", "{} = {}", "{} < {}",
    r"\int_0^{{{}}} x dx", r"\sum_{{n=0}}^{{{}}} {}", r"\{{{}\}}", r"{} \mod {}", r"\binom{{{}}}{{{}}}", r"{}\%",
    "{}{}", "[{}, {}]", r"{} \cup {}", r"\begin{{pmatrix}}{}\\{}\end{{pmatrix}}", r"\arg({})", r"\gcd({},{})", "{} cm",
    "{}:{}", "{}_{}", r"\text{{{}}}", r"\overline{{{}}}", r"x \in {}", r"{}^\circ", "{} ... {}", r"\min({},{})",
    "|{}|<{}", r"|x|\ge {}", r"x\ne {}", r"\mathbb{{R}}\setminus\{{{}\}}", "]{},{}[", "({},{})", "{} for all x",
    "no, {}",
    "all real numbers except {}", r"\{{x : {}\}}", "{} and {}", "{} or {}", r"{}, k\in\mathbb{{Z}}", "(B) {}", "{}) {}",
    r"x={}+k\pi, k\in\mathbb{{Z}}", r"x\equiv {} \pmod {}", r"{} \pmod {}", r"{} \equiv {} \pmod {}", "{}+C",
    r"x^2+{}+C",
    r"{}, C\in\mathbb{{R}}", "y=Ce^{{{}}}", "{}: {}", "{}, for some constant {}", "{} hundred and {}", r"\det A={}",
    r"\begin{{cases}} {} & x>{} \\ {} & x\le {} \end{{cases}}", "f(x)={}", "f(t)={}", "x_1={}, x_2={}", "P({},{})",
    r"\begin{{cases}} {} & {} \\ {} & \text{{otherwise}} \end{{cases}}",
    r"\begin{{vmatrix}}{}&{}\\{}&{}\end{{vmatrix}}",
    r"{}\mathbf{{i}}+{}\mathbf{{j}}", r"({},{})^T", r"0.\overline{{{}}}", "0.({})", r"0.{}{}{}\ldots", "{} kWh",
    "{}:{}",
    r"{}\text{{ m s}}^{{-1}}", r"{} \mu m", "{} radians", "{} teams", r"\sum_{{k=0}}^{{\infty}} {}",
    "x={}, y={} or x={}, y={}",
)  # fmt: skip


def answer(chance: random.Random, depth: int = 0) -> str:
    """Return a random answer of the grammar."""
    if depth > 3 or chance.random() < 0.35:
        return chance.choice(_ATOMS)
    shape = chance.choice(_SHAPES)
    return shape.format(*(answer(chance, depth + 1) for _ in range(shape.count("{}"))))


@cache
def _read_references() -> list[tuple[str, str, Form]]:
    return [(text, without_blanks(clean(text)), read(clean(text))) for text in REFERENCES]


def hits(text: str) -> list[str]:
    """Return the references that an answer is correct for."""
    cleaned = clean(text)
    plain, form = without_blanks(cleaned), read(cleaned)
    return [
        reference
        for reference, expected, expected_form in _read_references()
        if plain == expected or equal_forms(expected_form, form)
    ]


@cache
def same_reference() -> frozenset[frozenset[str]]:
    """Return the pairs of references that mean the same, such as `2` and `2 hours`."""
    return frozenset(
        frozenset((reference, other))
        for reference in REFERENCES
        for other in hits(reference)
        if other != reference
    )


def too_many(text: str) -> list[str]:
    """Return the references that an answer is correct for, if they do not all mean the same; else nothing.

    A percentage is correct for two numbers, 50 % for 50 and for 0.5. So are an angle in degrees,
    for 60 and for π/3, and a remainder with its modulus, for the number and for the class.
    """
    found = hits(text)
    limit = 2 if re.search(r"%|circ|mod", text) else 1
    different: list[str] = []
    for one in found:
        if not any(frozenset((one, other)) in same_reference() for other in different):
            different.append(one)
    return found if len(different) > limit else []
