"""Draw a drive in which one cause, and no other, makes the throughput low."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from reward.tasks.telelogs import radio
from reward.tasks.telelogs.checks import only_cause, repaired, symptom_in
from reward.tasks.telelogs.drive import Row, Scenario, drive
from reward.tasks.telelogs.outline import Outline
from reward.tasks.telelogs.surroundings import Surroundings, draw_surroundings

FADING_DB = 0.5
MISSED_FRACTION = 0.02
MAX_DRAWS = 3000
"""The largest number of draws per problem; more than a hundred are rare."""

_MARGIN_OF_APPROACH_DB = (10.0, 18.0)


def draw_scenario(label: str, outline: Outline, rng: random.Random) -> tuple[Scenario, tuple[Row, ...]]:
    """Return a drive and its measurements.

    The throughput is low exactly in the low rows of `outline`, and it would not be low without the one cause.
    """
    for _ in range(MAX_DRAWS):
        surroundings = draw_surroundings(label, outline, rng)
        scenario = surroundings and _scenario(label, outline, surroundings, rng)
        if not scenario:
            continue
        rows = drive(scenario)
        if (
            symptom_in(rows, outline.low_rows)
            and only_cause(label, scenario.cells, rows)
            and _is_healthy(drive(repaired(scenario, label, outline.low_rows)), outline)
        ):
            return scenario, rows
    raise AssertionError(f"{MAX_DRAWS} draws gave no drive with {label} in {outline}")


def _is_healthy(rows: tuple[Row, ...], outline: Outline) -> bool:
    """Return True if there is no symptom, apart from the two seconds that any handover costs."""
    recovering = range(outline.approach_rows, outline.approach_rows + 2) if outline.approach_rows else ()
    return symptom_in([row for i, row in enumerate(rows) if i not in recovering], low=())


def _scenario(
    label: str, outline: Outline, surroundings: Surroundings, rng: random.Random
) -> Scenario | None:
    speeds = _speeds(label, outline, rng)
    track = _track(speeds, outline)
    serving = _serving(label, outline, surroundings, rng)
    if serving is None:
        return None
    gains = _gains(outline, surroundings, track, serving[0], rng)
    scenario = Scenario(
        cells=surroundings.cells,
        track=track,
        speeds_kmh=speeds,
        serving=serving,
        gains_db=gains,
        rbs=_rbs(label, outline, rng),
        noise=tuple(rng.uniform(0.96, 1.04) for _ in speeds),
        recovery=radio.RECOVERY_AFTER_HANDOVER if label == "C5" and not outline.approach_rows else 1.0,
        missed=frozenset(
            (i, j)
            for i in range(outline.rows)
            for j in range(len(surroundings.cells))
            if rng.random() < MISSED_FRACTION
        ),
        neighbours=outline.neighbours,
    )
    return _alternating(scenario, outline, rng) if label == "C5" else scenario


def _speeds(label: str, outline: Outline, rng: random.Random) -> tuple[float, ...]:
    """Draw speeds below 35 km/h. In C7 the car is faster in the low rows."""
    slow = rng.uniform(10, 32) if label != "C7" else rng.uniform(26, 33)
    speed, fast = slow, rng.uniform(48, 75)
    speeds = []
    for i in range(outline.rows):
        if label == "C7" and i in outline.low_rows:
            speed = min(max(speed + rng.uniform(2, 6), 46.0), fast + rng.uniform(-1, 1))
        else:
            speed = min(max(speed + rng.uniform(-1.5, 1.5), 5.0), 34.0)
        speeds.append(speed)
    return tuple(speeds)


def _track(speeds_kmh: tuple[float, ...], outline: Outline) -> tuple[tuple[float, float], ...]:
    """Return the positions on a straight road. The middle of the low rows is at the origin."""
    along = [0.0]
    for speed in speeds_kmh[1:]:
        along.append(along[-1] + speed / 3.6)
    low = [along[i] for i in outline.low_rows]
    middle = (low[0] + low[-1]) / 2
    east, north = math.sin(math.radians(outline.heading_deg)), math.cos(math.radians(outline.heading_deg))
    return tuple(((a - middle) * east, (a - middle) * north) for a in along)


def _rbs(label: str, outline: Outline, rng: random.Random) -> tuple[float, ...]:
    """Draw the scheduled resource blocks, out of 273. In C8 there are few in the low rows."""
    usual, few = rng.uniform(215, 262), rng.uniform(50, 138)
    return tuple(
        min((few if label == "C8" and i in outline.low_rows else usual) + rng.uniform(-8, 8), 273.0)
        for i in range(outline.rows)
    )


def _serving(
    label: str, outline: Outline, surroundings: Surroundings, rng: random.Random
) -> tuple[int, ...] | None:
    """Draw the serving cells: a weak cell of another site before the low rows, then cell 0; in C5 also cell 1."""
    own = surroundings.cells[0].gnodeb
    others = [
        j for j, cell in enumerate(surroundings.cells) if cell.gnodeb != own and j not in surroundings.strong
    ]
    if outline.approach_rows and not others:
        return None
    first = rng.choice(others) if outline.approach_rows else 0
    served = [first] * outline.approach_rows
    cell, unchanged = 0, 0
    for i in outline.low_rows:
        # Never three rows in a row with the same cell, or the rate would recover.
        if label == "C5" and i > outline.low_rows.start:
            change = unchanged == 1 or i == outline.low_rows.start + 1 or rng.random() < 0.7
            cell, unchanged = (1 - cell, 0) if change else (cell, unchanged + 1)
        served.append(cell)
    return tuple(served)


def _gains(
    outline: Outline,
    surroundings: Surroundings,
    track: tuple[tuple[float, float], ...],
    first: int,
    rng: random.Random,
) -> tuple[tuple[float, ...], ...]:
    """Draw the gains of each row and cell.

    Between the approach and the low rows the car turns a corner. Before it the radio paths differ, and one cell is
    clearly the best.
    """
    before = list(surroundings.gains_db)
    if outline.approach_rows:
        x_m, y_m = track[outline.approach_rows // 2]
        best_dbm = rng.uniform(-88, -74)
        for j, cell in enumerate(surroundings.cells):
            margin = 0.0 if j == first else rng.uniform(*_MARGIN_OF_APPROACH_DB)
            wanted = best_dbm - margin - cell.rsrp_dbm(x_m, y_m)
            before[j] = wanted if j == first else min(before[j], wanted)
    return tuple(
        tuple(
            gain + rng.gauss(0, FADING_DB)
            for gain in (before if i < outline.approach_rows else surroundings.gains_db)
        )
        for i in range(outline.rows)
    )


def _alternating(scenario: Scenario, outline: Outline, rng: random.Random) -> Scenario | None:
    """Let cell 1 fade around cell 0, so that the serving cell is slightly stronger in each row."""
    gains = [list(row) for row in scenario.gains_db]
    for i in outline.low_rows:
        x_m, y_m = scenario.track[i]
        levels = [scenario.cells[j].rsrp_dbm(x_m, y_m) + gains[i][j] for j in (0, 1)]
        ahead = rng.uniform(0.4, 2.2) * (1 if scenario.serving[i] == 1 else -1)
        fading = levels[0] + ahead - levels[1]
        if abs(fading) > 7:
            return None
        gains[i][1] += fading
    return replace(scenario, gains_db=tuple(map(tuple, gains)))
