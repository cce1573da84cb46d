"""A response is truncated once, for its own duration and not for the time that it waited."""

from __future__ import annotations

from rollout.engine.response_clock import ResponseClock


def test_time_counts_from_the_first_token() -> None:
    clock = ResponseClock(10.0)
    assert clock.look({"a": 0, "b": 1}, 0.0) == []
    assert clock.look({"a": 0, "b": 5}, 10.0) == []
    assert clock.look({"a": 1, "b": 6}, 10.5) == ["b"]
    assert clock.look({"a": 9}, 20.5) == []
    assert clock.look({"a": 10}, 21.0) == ["a"]


def test_an_overdue_response_is_reported_once_and_remembered() -> None:
    clock = ResponseClock(1.0)
    clock.look({"a": 1}, 0.0)
    assert clock.look({"a": 2}, 2.0) == ["a"]
    assert clock.look({"a": 2}, 3.0) == []
    assert clock.overdue == {"a"}


def test_the_time_of_an_ended_response_is_forgotten() -> None:
    clock = ResponseClock(1.0)
    clock.look({"a": 1}, 0.0)
    clock.look({}, 0.5)
    assert clock.look({"a": 1}, 5.0) == [], "a new response with the same id"
