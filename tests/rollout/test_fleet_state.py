"""Fleet membership against a model of it, and every event in every state."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rollout.fleet_state import LOADED_VERSION, FleetState, WorkerState

NAMES = ["rollout-0", "rollout-1"]
NAME = st.sampled_from(NAMES)
UP = (WorkerState.STALE, WorkerState.HEALTHY)


class FleetModel(RuleBasedStateMachine):
    """The model knows of each worker whether its process is up, the version it serves, and how often it was lost."""

    @initialize(restarts=st.integers(0, 3))
    def begin(self, restarts: int) -> None:
        self.budget = restarts
        self.fleet = FleetState(NAMES, restarts)
        self.up = dict.fromkeys(NAMES, False)
        self.version: dict[str, int | None] = dict.fromkeys(NAMES)
        self.losses: Counter[str] = Counter()
        self.published_versions: list[int] = []
        self.as_loaded = False

    def dead(self, name: str) -> bool:
        return self.losses[name] > self.budget

    @rule(name=NAME)
    def started(self, name: str) -> None:
        if self.dead(name) or self.up[name]:
            with pytest.raises(ValueError, match=name):
                self.fleet.started(name)
            return
        self.fleet.started(name)
        self.up[name] = True
        self.version[name] = LOADED_VERSION if self.as_loaded else None

    @precondition(lambda self: self.published_versions)
    @rule(name=NAME, behind=st.integers(0, 2))
    def pulled(self, name: str, behind: int) -> None:
        """The worker serves the current version now, or an older one that it was still pulling."""
        version = self.published_versions[-1 - min(behind, len(self.published_versions) - 1)]
        if not self.up[name]:
            with pytest.raises(ValueError, match=name):
                self.fleet.pulled(name, version)
            return
        self.fleet.pulled(name, version)
        self.version[name] = version

    @rule(name=NAME)
    def lost(self, name: str) -> None:
        if self.dead(name):
            with pytest.raises(ValueError, match=name):
                self.fleet.lost(name)
            return
        self.losses[name] += 1
        expected = WorkerState.DEAD if self.dead(name) else WorkerState.RESTARTING
        assert self.fleet.lost(name) is expected
        self.up[name], self.version[name] = False, None

    @rule()
    def serve_as_loaded(self) -> None:
        if self.published_versions:
            with pytest.raises(ValueError, match="too late"):
                self.fleet.serve_as_loaded()
            return
        self.fleet.serve_as_loaded()
        self.as_loaded = True
        self.published_versions.append(LOADED_VERSION)
        self.version = {name: LOADED_VERSION if up else None for name, up in self.up.items()}

    @rule(step=st.integers(-1, 3))
    def published(self, step: int) -> None:
        version = (self.published_versions or [0])[-1] + step
        if self.published_versions and step <= 0:
            with pytest.raises(ValueError, match="was published after"):
                self.fleet.published(version)
            return
        self.fleet.published(version)
        self.published_versions.append(version)

    @invariant()
    def only_those_with_the_current_version_are_healthy(self) -> None:
        current = self.published_versions[-1] if self.published_versions else None
        assert self.fleet.current_version == current
        for name in NAMES:
            serves_current = current is not None and self.version[name] == current
            assert (self.fleet[name].state is WorkerState.HEALTHY) == serves_current
            assert self.fleet[name].version == self.version[name]

    @invariant()
    def a_state_says_whether_the_process_is_up_or_may_come_back(self) -> None:
        for name in NAMES:
            state = self.fleet[name].state
            assert (state in UP) == self.up[name]
            assert (state is WorkerState.DEAD) == self.dead(name)
            assert (state is WorkerState.STARTING) == (not self.up[name] and not self.losses[name])

    @invariant()
    def the_fleet_counts_its_members(self) -> None:
        states = [member.state for member in self.fleet.members]
        assert [member.name for member in self.fleet.members] == NAMES
        assert self.fleet.healthy == states.count(WorkerState.HEALTHY)
        assert self.fleet.started_workers == sum(self.up.values())
        assert self.fleet.alive == sum(not self.dead(name) for name in NAMES)
        assert self.fleet.restarts == sum(min(self.losses[name], self.budget) for name in NAMES)


TestFleet = FleetModel.TestCase
TestFleet.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def fleet_in(state: WorkerState, published: bool = True) -> FleetState:
    """One worker w in `state`, after version 1 was published, or not; a place is given up at the second loss."""
    fleet = FleetState(["w"], restarts_per_worker=1)
    if published:
        fleet.published(1)
    if state in UP:
        fleet.started("w")
    if state is WorkerState.HEALTHY:
        fleet.pulled("w", 1)
    if state in (WorkerState.RESTARTING, WorkerState.DEAD):
        fleet.lost("w")
    if state is WorkerState.DEAD:
        fleet.lost("w")
    assert fleet["w"].state is state
    return fleet


@pytest.mark.parametrize("state", WorkerState)
def test_each_event_in_each_state(state: WorkerState) -> None:
    def after(event: str, *arguments: int) -> WorkerState | None:
        fleet = fleet_in(state)
        try:
            getattr(fleet, event)("w", *arguments)
        except ValueError:
            assert fleet["w"].state is state, "what is refused changes nothing"
            return None
        return fleet["w"].state

    starting, stale, healthy, restarting, dead = WorkerState
    expected = {
        starting: (stale, None, None, restarting),
        stale: (None, healthy, stale, restarting),
        healthy: (None, healthy, stale, restarting),
        restarting: (stale, None, None, dead),
        dead: (None, None, None, None),
    }
    assert (after("started"), after("pulled", 1), after("pulled", 0), after("lost")) == expected[state]


def test_a_publication_makes_the_healthy_stale_and_touches_nobody_else() -> None:
    for state in WorkerState:
        fleet = fleet_in(state)
        fleet.published(2)
        assert fleet["w"].state is (WorkerState.STALE if state is WorkerState.HEALTHY else state)


def test_a_replaced_worker_holds_no_weights() -> None:
    fleet = fleet_in(WorkerState.HEALTHY)
    fleet.lost("w")
    fleet.started("w")
    assert fleet["w"].version is None
    assert fleet["w"].incarnation == 1


@pytest.mark.parametrize("state", [state for state in WorkerState if state is not WorkerState.HEALTHY])
def test_served_as_loaded_whoever_is_up_is_healthy(state: WorkerState) -> None:
    """Nothing was published, so nobody is healthy before; afterwards a new process is healthy from its start."""
    fleet = fleet_in(state, published=False)
    fleet.serve_as_loaded()
    assert fleet.current_version == LOADED_VERSION
    assert fleet["w"].state is (WorkerState.HEALTHY if state is WorkerState.STALE else state)
    if state in (WorkerState.STARTING, WorkerState.RESTARTING):
        fleet.started("w")
        assert (fleet["w"].state, fleet["w"].version) == (WorkerState.HEALTHY, LOADED_VERSION)


def test_what_was_loaded_is_stale_once_something_is_published() -> None:
    fleet = fleet_in(WorkerState.STALE, published=False)
    fleet.serve_as_loaded()
    fleet.published(1)
    assert fleet["w"].state is WorkerState.STALE
    fleet.lost("w")
    fleet.started("w")
    assert (fleet["w"].state, fleet["w"].version) == (WorkerState.STALE, LOADED_VERSION)
    fleet.pulled("w", 1)
    assert fleet["w"].state is WorkerState.HEALTHY
