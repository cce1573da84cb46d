"""Text from other sources is safe to print: it moves no cursor, sets no title, and hides nothing."""

from __future__ import annotations

import json
import math
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.text import json_text, plain_text, visible_text, without_nulls


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[Hgone", "gone"),
        ("\x1b]0;a title\x07after", "after"),
        ("\x1b]52;c;cm0gLXJmIC8=\x1b\\after", "after"),
        ("\x1b]8;;http://evil\x1b\\text\x1b]8;;\x1b\\", "text"),
        ("\x1bP1$r\x1b\\after", "after"),
        ("\x9b31mred", "red"),
        ("over\rwrite\b\x07", "overwrite"),
        ("line\r\nline\ttab", "line\nline\ttab"),
        ("\u202eesrever", "esrever"),
        ("α ≤ 1 → 𝛑 · 你好", "α ≤ 1 → 𝛑 · 你好"),
        ("unfinished \x1b[", "unfinished "),
        ("unfinished \x1b", "unfinished "),
    ],
)
def test_escapes_are_gone_and_text_stays(text: str, plain: str) -> None:
    assert plain_text(text) == plain


@given(st.text(st.sampled_from("\x1b\x9b[]P\\;0m\x07aA\n\t\r ") | st.characters()))
def test_no_terminal_escape_is_left(text: str) -> None:
    plain = plain_text(text)
    assert not [c for c in plain if unicodedata.category(c) == "Cc" and c not in "\n\t"]
    assert plain_text(plain) == plain


@given(st.text())
def test_no_invisible_character_is_left(text: str) -> None:
    left = {unicodedata.category(character) for character in visible_text(text) if character not in "\n\t"}
    assert not left & {"Cc", "Cf", "Cs"}


@given(st.text(st.characters(categories=("L", "N", "P", "S", "Zs"))))
def test_visible_text_stays(text: str) -> None:
    assert visible_text(text) == text


def test_escapes_are_written_out() -> None:
    assert visible_text("\x1b[31mred\u202e") == "\\u001b[31mred\\u202e"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.floats(width=32).map(np.float32)
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner),
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, "null"),
        (np.float32(0.5), "0.5"),
        (b"1.5", "\"b'1.5'\""),
        (np.arange(2), '"[0 1]"'),
        ({1: (2,)}, '{"1": [2]}'),
    ],
)
def test_values_that_json_lacks(value: object, text: str) -> None:
    assert json_text(value) == text


@given(VALUES)
def test_every_value_is_json_that_every_program_reads(value: object) -> None:
    """Strict parsers refuse NaN and Infinity, which Python's writes unless it is told otherwise."""

    def refused(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(json_text(value), parse_constant=refused)


def test_fields_that_are_null_are_left_out() -> None:
    value = {"a": None, "b": [{"c": None, "d": 0}, None, ""], "e": {}}
    assert without_nulls(value) == {"b": [{"d": 0}, None, ""], "e": {}}
