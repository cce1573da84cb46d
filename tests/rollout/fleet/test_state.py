"""The membership of the fleet, compared with a model, and every event in every state."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.core.schema import MAX_ACTORS
from cluster.core.types import LOADED_VERSION
from rollout.fleet.state import FleetState, WorkerState

UP = (WorkerState.STALE, WorkerState.HEALTHY, WorkerState.SUSPECT)
ON_THE_WAY_OUT = (WorkerState.DRAINING, WorkerState.RETIRED)


@dataclass
class Worker:
    """The model of a member: its process, heartbeat and version, and whether it is leaving or gone."""

    up: bool = False
    heard: bool = True
    version: int | None = None
    leaving: bool = False
    gone: bool = False
    losses_in_a_row: int = 0
    losses: int = 0

    def expected(self, current: int | None) -> WorkerState:
        if self.gone:
            return WorkerState.RETIRED if self.leaving else WorkerState.DEAD
        if not self.up:
            return WorkerState.RESTARTING if self.losses else WorkerState.STARTING
        if self.leaving:
            return WorkerState.DRAINING
        if not self.heard:
            return WorkerState.SUSPECT
        return WorkerState.HEALTHY if current is not None and self.version == current else WorkerState.STALE


class FleetModel(RuleBasedStateMachine):
    @initialize(workers=st.integers(1, 3), budget=st.integers(0, 3))
    def begin(self, workers: int, budget: int) -> None:
        self.budget = budget
        self.fleet = FleetState(workers, budget)
        self.model = {f"rollout-{index}": Worker() for index in range(workers)}
        self.published_versions: list[int] = []
        self.as_loaded = False

    def pick(self, index: int) -> tuple[str, Worker]:
        return list(self.model.items())[index % len(self.model)]

    def attempt(self, allowed: bool, event: str, name: str, *arguments: Any) -> bool:
        """Send an event. If it is not `allowed`, assert that it is refused and changes nothing. Return `allowed`."""
        if allowed:
            getattr(self.fleet, event)(name, *arguments)
            return True
        before = self.fleet[name]
        with pytest.raises(ValueError, match=name):
            getattr(self.fleet, event)(name, *arguments)
        assert self.fleet[name] == before
        return False

    @rule(index=st.integers(0, 9))
    def started(self, index: int) -> None:
        name, worker = self.pick(index)
        if self.attempt(not worker.up and not worker.gone, "started", name):
            worker.up, worker.heard = True, True
            worker.version = LOADED_VERSION if self.as_loaded else None

    @precondition(lambda self: self.published_versions)
    @rule(index=st.integers(0, 9), behind=st.integers(0, 2))
    def pulled(self, index: int, behind: int) -> None:
        """The worker serves the current version, or an older one whose update was still in progress."""
        name, worker = self.pick(index)
        version = self.published_versions[-1 - min(behind, len(self.published_versions) - 1)]
        if self.attempt(worker.up and not worker.leaving, "pulled", name, version):
            worker.version, worker.heard = version, True

    @rule(index=st.integers(0, 9), heard=st.booleans())
    def silent_or_heard(self, index: int, heard: bool) -> None:
        name, worker = self.pick(index)
        if self.attempt(worker.up and not worker.leaving, "heard" if heard else "silent", name):
            worker.heard = heard

    @rule(index=st.integers(0, 9))
    def served(self, index: int) -> None:
        name, worker = self.pick(index)
        if self.attempt(worker.up, "served", name):
            worker.losses_in_a_row = 0

    @rule(index=st.integers(0, 9))
    def lost(self, index: int) -> None:
        name, worker = self.pick(index)
        if not self.attempt(not worker.gone, "lost", name):
            return
        worker.up, worker.version = False, None
        if worker.leaving or worker.losses_in_a_row == self.budget:
            worker.gone = True
        else:
            worker.losses += 1
            worker.losses_in_a_row += 1

    @rule(index=st.integers(0, 9))
    def drained(self, index: int) -> None:
        name, worker = self.pick(index)
        if self.attempt(worker.leaving and worker.up, "drained", name):
            worker.up, worker.version, worker.gone = False, None, True

    @rule(workers=st.integers(0, 5))
    def resize(self, workers: int) -> None:
        if workers == 0:
            with pytest.raises(ValueError, match="from 1 to 4096"):
                self.fleet.resize(workers)
            return
        before = {name for name, worker in self.model.items() if not worker.leaving and not worker.gone}
        healthy = {name for name in before if self.fleet[name].state is WorkerState.HEALTHY}
        change = self.fleet.resize(workers)
        assert not set(change.added) & self.model.keys(), "a name must not be used twice"
        assert set(change.drained) <= before
        assert len(before) + len(change.added) - len(change.drained) == workers
        assert not (change.added and change.drained)
        kept = before - set(change.drained)
        assert kept <= healthy or not healthy & set(change.drained), "healthy members must be drained last"
        for name in change.drained:
            worker = self.model[name]
            worker.leaving = True
            worker.gone = not worker.up
        self.model |= {name: Worker() for name in change.added}

    @rule()
    def serve_as_loaded(self) -> None:
        if self.published_versions:
            with pytest.raises(ValueError, match="cannot serve weights as loaded"):
                self.fleet.serve_as_loaded()
            return
        self.fleet.serve_as_loaded()
        self.as_loaded = True
        self.published_versions.append(LOADED_VERSION)
        for worker in self.model.values():
            if worker.up and not worker.leaving:
                worker.version = LOADED_VERSION

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
    def every_worker_is_in_the_state_that_it_should_be_in(self) -> None:
        current = self.published_versions[-1] if self.published_versions else None
        assert self.fleet.current_version == current
        for name, worker in self.model.items():
            assert self.fleet[name].state is worker.expected(current), name
            if worker.up and not worker.leaving:
                assert self.fleet[name].version == worker.version

    @invariant()
    def the_fleet_counts_its_members(self) -> None:
        states = [self.fleet[name].state for name in self.model]
        assert [member.name for member in self.fleet.members] == [
            name for name in self.model if self.fleet[name].state is not WorkerState.RETIRED
        ]
        assert self.fleet.healthy == states.count(WorkerState.HEALTHY)
        assert self.fleet.size == sum(
            not worker.leaving and not worker.gone for worker in self.model.values()
        )
        assert self.fleet.restarts == sum(worker.losses for worker in self.model.values())


TestFleet = FleetModel.TestCase
TestFleet.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def fleet_in(state: WorkerState, published: bool = True) -> FleetState:
    """Return a fleet with one worker, rollout-0, in `state`. A member is dead after the second loss in a row."""
    fleet, name = FleetState(1, max_consecutive_failures=1), "rollout-0"
    if published:
        fleet.published(1)
    if state in (*UP, WorkerState.DRAINING):
        fleet.started(name)
    if state is WorkerState.HEALTHY:
        fleet.pulled(name, 1)
    if state is WorkerState.SUSPECT:
        fleet.silent(name)
    if state in (WorkerState.RESTARTING, WorkerState.DEAD):
        fleet.lost(name)
    if state is WorkerState.DEAD:
        fleet.lost(name)
    if state in ON_THE_WAY_OUT:
        fleet.drain(name)
    assert fleet[name].state is state
    return fleet


@pytest.mark.parametrize("state", WorkerState)
def test_each_event_in_each_state(state: WorkerState) -> None:
    def after(event: str, *arguments: int) -> WorkerState | None:
        fleet = fleet_in(state)
        before = fleet["rollout-0"]
        try:
            getattr(fleet, event)("rollout-0", *arguments)
        except ValueError:
            assert fleet["rollout-0"] == before, "a refused event must change nothing"
            return None
        return fleet["rollout-0"].state

    starting, stale, healthy, suspect, restarting, dead, draining, retired = WorkerState
    # started, pulled the current version, pulled an older one, silent, heard, lost, drain, drained
    expected = {
        starting: (stale, None, None, None, None, restarting, retired, None),
        stale: (None, healthy, stale, suspect, stale, restarting, draining, None),
        healthy: (None, healthy, stale, suspect, healthy, restarting, draining, None),
        suspect: (None, healthy, stale, suspect, stale, restarting, draining, None),
        restarting: (stale, None, None, None, None, dead, retired, None),
        dead: (None, None, None, None, None, None, retired, None),
        draining: (None, None, None, None, None, retired, None, retired),
        retired: (None,) * 8,
    }
    events = [
        ("started",),
        ("pulled", 1),
        ("pulled", 0),
        ("silent",),
        ("heard",),
        ("lost",),
        ("drain",),
        ("drained",),
    ]
    assert tuple(after(*event) for event in events) == expected[state]


def test_a_new_version_makes_healthy_members_stale_and_changes_no_others() -> None:
    for state in WorkerState:
        fleet = fleet_in(state)
        fleet.published(2)
        after = fleet["rollout-0"].state
        assert after is (WorkerState.STALE if state is WorkerState.HEALTHY else state)


def test_a_replaced_worker_serves_no_version() -> None:
    fleet = fleet_in(WorkerState.HEALTHY)
    fleet.lost("rollout-0")
    fleet.started("rollout-0")
    assert fleet["rollout-0"].version is None
    assert fleet["rollout-0"].incarnation == 1


def test_a_worker_that_delivers_samples_may_be_lost_any_number_of_times() -> None:
    """Spot machines come and go for weeks. Only processes that die before they deliver a sample are limited."""
    fleet = fleet_in(WorkerState.STALE)
    for _ in range(50):
        fleet.served("rollout-0")
        assert fleet.lost("rollout-0") is WorkerState.RESTARTING
        fleet.started("rollout-0")
    assert fleet.restarts == 50
    assert fleet.lost("rollout-0") is WorkerState.DEAD


@pytest.mark.parametrize("state", [state for state in WorkerState if state is not WorkerState.HEALTHY])
def test_members_that_are_up_are_healthy_if_weights_are_served_as_loaded(state: WorkerState) -> None:
    """Before, no version is current and no member is healthy. Afterwards a new process is healthy from its start."""
    fleet = fleet_in(state, published=False)
    fleet.serve_as_loaded()
    assert fleet.current_version == LOADED_VERSION
    assert fleet["rollout-0"].state is (WorkerState.HEALTHY if state is WorkerState.STALE else state)
    if state is WorkerState.SUSPECT:
        fleet.heard("rollout-0")
        assert fleet["rollout-0"].state is WorkerState.HEALTHY
    if state in (WorkerState.STARTING, WorkerState.RESTARTING):
        fleet.started("rollout-0")
        assert (fleet["rollout-0"].state, fleet["rollout-0"].version) == (WorkerState.HEALTHY, LOADED_VERSION)


def test_loaded_weights_are_stale_after_the_first_publication() -> None:
    fleet = fleet_in(WorkerState.STALE, published=False)
    fleet.serve_as_loaded()
    fleet.published(1)
    assert fleet["rollout-0"].state is WorkerState.STALE
    fleet.lost("rollout-0")
    fleet.started("rollout-0")
    assert (fleet["rollout-0"].state, fleet["rollout-0"].version) == (WorkerState.STALE, LOADED_VERSION)
    fleet.pulled("rollout-0", 1)
    assert fleet["rollout-0"].state is WorkerState.HEALTHY


EVENTS = ("started", "pulled", "pulled older", "silent", "heard", "served", "lost", "drain", "drained")


def after(fleet: FleetState, name: str | None, event: str, argument: int = 0) -> FleetState | None:
    """Return a copy of the fleet after the event, or None if the event is not allowed."""
    changed = copy.copy(fleet)
    changed._members = dict(fleet._members)
    try:
        if name is None:
            getattr(changed, event)(argument)
        elif event.startswith("pulled"):
            assert changed.current_version is not None
            changed.pulled(name, changed.current_version - (event == "pulled older"))
        else:
            getattr(changed, event)(name)
    except ValueError:
        return None
    return changed


def essence(fleet: FleetState) -> tuple[Any, ...]:
    """Return what determines the behavior of a fleet, without the names of members and the number of replacements."""
    current = fleet.current_version
    assert current is not None
    return tuple(sorted((each.state.value, each.version == current, each.failures) for each in fleet.members))


def successors(fleet: FleetState) -> Iterator[FleetState]:
    assert fleet.current_version is not None
    steps = [(member.name, event, 0) for member in fleet.members for event in EVENTS]
    steps += [(None, "published", fleet.current_version + 1), (None, "resize", 1), (None, "resize", 2)]
    for step in steps:
        changed = after(fleet, *step)
        if changed is not None and len(changed.members) <= 3:
            yield changed


def test_every_reachable_fleet_is_consistent_and_can_recover() -> None:
    """All reachable fleets of up to three members, of which two shall serve, with a limit of one failure in a row."""
    first = FleetState(2, max_consecutive_failures=1)
    first.published(1)
    found, frontier = {essence(first): first}, [first]
    backwards: dict[tuple[Any, ...], set[tuple[Any, ...]]] = {}
    while frontier:
        fleet = frontier.pop()
        for changed in successors(fleet):
            key = essence(changed)
            backwards.setdefault(key, set()).add(essence(fleet))
            if key not in found:
                found[key] = changed
                frontier.append(changed)
    assert len(found) > 200

    for fleet in found.values():
        for member in fleet.members:
            current = member.version == fleet.current_version
            assert (member.state is WorkerState.HEALTHY) <= current, (
                "only who serves the current weights takes prompts"
            )
            assert (member.state is WorkerState.STALE) <= (not current)
            assert (member.state in (WorkerState.DEAD, WorkerState.STARTING, WorkerState.RESTARTING)) <= (
                member.version is None
            )
            assert member.failures <= 1
        assert fleet.size == sum(
            member.state not in (*ON_THE_WAY_OUT, WorkerState.DEAD) for member in fleet.members
        )

    whole = {key for key, fleet in found.items() if fleet.healthy == fleet.size == 2}
    reached, frontier_keys = set(whole), list(whole)
    while frontier_keys:
        for before in backwards.get(frontier_keys.pop(), ()):
            if before not in reached:
                reached.add(before)
                frontier_keys.append(before)
    assert reached == found.keys(), "from every state, two healthy workers must be reachable"


def test_an_impossible_size_is_refused_and_changes_nothing() -> None:
    """An actor's method takes any value from any sender."""
    state = FleetState(2, 3)
    before = state.members
    values: list[Any] = [0, -1, MAX_ACTORS + 1, 10**20, 10**5000, 2.0, math.inf, math.nan, True, "3", None]
    for workers in values:
        with pytest.raises(ValueError, match="must be an integer from 1 to 4096"):
            state.resize(workers)
        assert state.members == before


def test_the_largest_fleet_is_made_and_emptied() -> None:
    state = FleetState(MAX_ACTORS, 3)
    assert state.size == MAX_ACTORS
    state.resize(1)
    assert state.size == 1
