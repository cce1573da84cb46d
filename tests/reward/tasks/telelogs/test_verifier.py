r"""The last \boxed{…} and the one label in it, against a table of cases and hostile strings."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reward.tasks.telelogs.causes import LABELS
from reward.tasks.telelogs.verifier import MAX_ANSWER_CHARACTERS, extract_boxed, verify

DIGITS = ("7", "2", "9", "4", "1")
LETTERS = ("A3", "K1", "Z9", "B3", "Q5")


def said(response: str, labels: tuple[str, ...] = LABELS) -> str | None:
    """Return the label that the verifier found, or None."""
    answer = verify(response, labels, labels[0]).answer
    return answer if answer in labels else None


@pytest.mark.parametrize(
    "response",
    [
        r"\boxed{C3}",
        r"so it is $\boxed{C3}$.",
        r"\boxed{{C3}}",
        r"\boxed{{{C3}}}",
        r"\boxed{ C3 }",
        "\\boxed{\n C3\n}",
        r"\boxed{c3}",
        r"\boxed{\text{C3}}",
        r"\boxed{\textbf{C3}}",
        r"\boxed{\mathrm{ C3 }}",
        r"\boxed{\text{\textbf{C3}}}",
        r"\boxed{$C3$}",
        r"\boxed{C3.}",
        r"\boxed{C_3}",
        r"\boxed{C_{3}}",
        r"\boxed{(C3)}",
        r"\boxed{\text{(C3)}}",
        r"\boxed{\textit{C3}}",
        r"\boxed{\emph{C3}}",
        r"\boxed{3}",
        r"\boxed{{3}}",
        r"\boxed{C1} no, wait: \boxed{C3}",
        r"\boxed{\boxed{C3}}",
        r"\boxed{C3} and an open \boxed{C1",
        r"C1 C2 \boxed{C3} C4",
    ],
)
def test_tolerated_forms_of_c3(response: str) -> None:
    assert said(response) == "C3"


@pytest.mark.parametrize(
    "response",
    [
        "",
        "C3",
        "boxed{C3}",
        r"\boxed C3",
        r"\boxed{C3",
        r"\boxed{{C3}",
        r"\boxed{}",
        r"\boxed{C}",
        r"\boxed{C0}",
        r"\boxed{C9}",
        r"\boxed{C33}",
        r"\boxed{C3, C4}",
        r"\boxed{C3 C4}",
        r"\boxed{C3C3}",
        r"\boxed{C_3_4}",
        r"\boxed{C__3}",
        r"\boxed{C3_4}",
        r"\boxed{(C3)(C4)}",
        r"\boxed{C3: a neighbour would serve better}",
        r"\boxed{not C3}",
        r"\boxed{-3}",
        r"\boxed{03}",
        r"\boxed{3.0}",
        r"\boxed{C 3}",
        r"\boxed{С3}",  # a Cyrillic letter
        r"\boxed{Ⅽ3}",  # a Roman numeral
        r"\boxed{ç3}",
        r"\boxed{C３}",
        r"\boxed{C٣}",
        r"\boxed{C³}",
        "\\boxed{C3\u200b}",
        "\\boxed{C3\x00}",
        r"\Boxed{C3}",
        r"\boxed{C3} \boxed{}",
        r"\boxed{C3} \boxed{unknown}",
        r"\boxed{\textcolor{red}{C3}}",
        r"\boxed{" + "C3" + " " * 100 + "}",
    ],
)
def test_responses_without_a_label(response: str) -> None:
    assert said(response) is None
    assert not verify(response, LABELS, "C3").correct


@pytest.mark.parametrize(
    ("boxed", "labels", "understood"),
    [
        ("7", DIGITS, "7"),
        ("3", DIGITS, None),
        ("C7", DIGITS, None),
        ("A3", LETTERS, "A3"),
        ("a3", LETTERS, "A3"),
        ("3", LETTERS, None),
        ("1", LETTERS, None),
        ("C3", LETTERS, None),
    ],
)
def test_randomized_labels_are_accepted_as_printed(
    boxed: str, labels: tuple[str, ...], understood: str | None
) -> None:
    assert said(f"\\boxed{{{boxed}}}", labels) == understood


@pytest.mark.parametrize("labels", [LABELS, DIGITS, LETTERS])
def test_exactly_one_label_is_correct(labels: tuple[str, ...]) -> None:
    for correct in labels:
        for label in labels:
            result = verify(f"therefore \\boxed{{{label}}}", labels, correct)
            assert (result.correct, result.answer) == (label == correct, label)


def test_the_reason_names_the_mistake() -> None:
    assert verify("C3", LABELS, "C3").reason == "no \\boxed{…}"
    assert "not exactly one of the labels C1, C2" in verify(r"\boxed{C3, C4}", LABELS, "C3").reason
    assert verify(r"\boxed{C4}", LABELS, "C3").reason == "C4 is not the cause"
    assert str(MAX_ANSWER_CHARACTERS) in verify(r"\boxed{" + "C" * 99 + "}", LABELS, "C3").reason


HOSTILE = st.lists(
    st.sampled_from(
        ["\\boxed{", "{", "}", "C3", "c", "3", "\\text{", "\\", "$", " ", "\n", "９", "Ｃ", "\u202e", "boxed"]
    ),
    max_size=40,
).map("".join)


@given(st.one_of(st.text(), HOSTILE))
@example("\\boxed{" * 2000)
@example("{" * 10_000 + "}" * 10_000)
@example("\\boxed{" + "{" * 10_000 + "C3" + "}" * 10_000 + "}")
@example("\\boxed{C3}" * 2000 + "\\boxed{" * 2000)
@example("\\boxed{" + "\\text{" * 3000)
@example("\ud800\\boxed{\udfff}")
def test_no_text_raises_and_only_a_box_is_correct(response: str) -> None:
    result = verify(response, LABELS, "C3")
    assert result.correct == (result.answer == "C3")
    if result.correct:
        boxed = extract_boxed(response)
        assert boxed is not None
        assert "3" in boxed
        assert not set("12456789") & set(boxed)


@given(HOSTILE, st.text(alphabet="ab {}C3", max_size=20))
def test_text_before_the_last_box_has_no_effect(before: str, after: str) -> None:
    assert said(f"{before}\\boxed{{C5}}{after}") == "C5"


def test_ten_kilobytes_of_open_boxes_are_read_once() -> None:
    """Each brace is compared a few times at most. Comparisons are counted, not timed."""

    class Counting(str):
        looked_at = 0

        def __getitem__(self, place):  # type: ignore[no-untyped-def]
            Counting.looked_at += 1
            return str.__getitem__(self, place)

    response = Counting("\\boxed{{" * 1250)
    assert extract_boxed(response) is None
    assert Counting.looked_at <= len(response)
