"""A response is cut off for being slow itself, not for having waited, and is cut off once."""

from __future__ import annotations

from rollout.engine.response_clock import ResponseClock


def test_time_counts_from_the_first_token() -> None:
    clock = ResponseClock(10.0)
    assert clock.look({"a": 0, "b": 1}, 0.0) == []
    assert clock.look({"a": 0, "b": 5}, 10.0) == []
    assert clock.look({"a": 1, "b": 6}, 10.5) == ["b"]
    assert clock.look({"a": 9}, 20.5) == []
    assert clock.look({"a": 10}, 21.0) == ["a"]


def test_who_is_overdue_is_named_once_and_known_until_it_has_ended() -> None:
    clock = ResponseClock(1.0)
    clock.look({"a": 1}, 0.0)
    assert clock.look({"a": 2}, 2.0) == ["a"]
    assert clock.look({"a": 2}, 3.0) == []
    assert clock.cut_off == {"a"}


def test_what_has_ended_is_forgotten() -> None:
    clock = ResponseClock(1.0)
    clock.look({"a": 1}, 0.0)
    clock.look({}, 0.5)
    assert clock.look({"a": 1}, 5.0) == [], "begun anew under the same name"
