"""The delay before a lost worker is replaced. Tests with real processes are in tests/integration."""

from __future__ import annotations

from rollout.fleet.supervisor import restart_delay_s


def test_each_failure_in_a_row_doubles_the_delay_up_to_a_minute() -> None:
    assert [restart_delay_s(failures) for failures in (1, 2, 3, 4, 5)] == [2, 4, 8, 16, 32]
    assert restart_delay_s(6) == restart_delay_s(10_000) == 60
