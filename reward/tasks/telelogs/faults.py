"""The same drive without its cause: what an engineer would change to mend it. Shows that the cause is one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from reward.tasks.telelogs import radio
from reward.tasks.telelogs.causes import PCI_MODULUS
from reward.tasks.telelogs.drive import Scenario, drive
from reward.tasks.telelogs.network import Cell

_NEAR_M = 550.0
_SLOW_KMH = 28.0
_USUAL_RBS = 235.0


def repaired(scenario: Scenario, label: str, low_rows: range) -> Scenario:
    """`scenario` with the one thing changed that `label` names."""
    serving = scenario.serving[low_rows.start]
    cells = scenario.cells
    if label == "C1":  # point the beam at the road
        depression = round(radio.depression_deg(cells[serving].height_m, cells[serving].distance_m(0, 0)))
        return _with(scenario, {serving: {"mechanical_tilt_deg": depression, "digital_tilt": 0}})
    if label == "C2":  # a site of that kind near the road
        nearer = _NEAR_M / cells[serving].distance_m(0, 0)
        moved = {"x_m": cells[serving].x_m * nearer, "y_m": cells[serving].y_m * nearer}
        return _with(scenario, {serving: moved})
    if label == "C3":  # hand over to the better neighbour
        better = drive(scenario)[low_rows[len(low_rows) // 2]].neighbours[0][0]
        kept = scenario.serving[: low_rows.start]
        return replace(scenario, serving=(*kept, *[better] * len(low_rows)))
    if label == "C4":  # turn the overlapping cells away
        return _with(scenario, {j: _turned(cells[j]) for j in _as_strong(scenario, serving, low_rows)})
    if label == "C5":  # a hysteresis
        kept = scenario.serving[: low_rows.start]
        return replace(scenario, serving=(*kept, *[serving] * len(low_rows)), recovery=1.0)
    if label == "C6":  # another PCI
        own = cells[serving].pci
        return _with(
            scenario,
            {
                j: {"pci": c.pci + 1}
                for j, c in enumerate(cells)
                if j != serving and (c.pci - own) % PCI_MODULUS == 0
            },
        )
    if label == "C7":
        return replace(scenario, speeds_kmh=tuple(min(speed, _SLOW_KMH) for speed in scenario.speeds_kmh))
    if label == "C8":
        return replace(scenario, rbs=tuple(max(rbs, _USUAL_RBS) for rbs in scenario.rbs))
    raise ValueError(f"there is no cause {label!r}")


def _with(scenario: Scenario, changes: Mapping[int, Mapping[str, Any]]) -> Scenario:
    cells = tuple(replace(cell, **changes.get(j, {})) for j, cell in enumerate(scenario.cells))
    return replace(scenario, cells=cells)


def _turned(cell: Cell) -> dict[str, int]:
    away = round(cell.azimuth_deg + 180) % 360
    return {"mechanical_azimuth_deg": away, "digital_azimuth_deg": 0}


def _as_strong(scenario: Scenario, serving: int, low_rows: range) -> Collection[int]:
    """Cells of other sites that are about as strong as the serving one in the middle of the low rows."""
    row = drive(scenario)[low_rows[len(low_rows) // 2]]
    site = scenario.cells[serving].gnodeb
    return [j for j, dbm in row.neighbours if scenario.cells[j].gnodeb != site and dbm > row.rsrp_dbm - 8]
