"""Seeded problems without end: each is decided by the seed, the split and its place, in every process the same."""

from __future__ import annotations

import datetime
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, overload

from reward.task import STREAMS
from reward.tasks.telelogs.causes import LABELS
from reward.tasks.telelogs.drive import Row
from reward.tasks.telelogs.network import Cell
from reward.tasks.telelogs.options import PUBLISHED, printed_label, randomised_options
from reward.tasks.telelogs.outline import draw_outline
from reward.tasks.telelogs.problem import Problem, Split, split_of
from reward.tasks.telelogs.prompts import compact_chat_question, compact_question, full_question
from reward.tasks.telelogs.scenario import draw_scenario
from reward.tasks.telelogs.tables import (
    RankDevice,
    cell_table,
    compact_cell_table,
    compact_drive_table,
    drive_table,
)

Style = Literal["full", "compact", "compact_chat"]

_MAX_SITES = 4
_FIRST_DAY = datetime.datetime(2024, 1, 1)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the problems of a split."""

    split: Split
    style: Style = "full"
    randomized_labels: bool = False
    seed: int = 0
    eval_fraction: float = 0.1


class GeneratedProblems(Sequence[Problem]):
    """`length` problems. Making one takes a few milliseconds; each is made when it is asked for."""

    def __init__(self, recipe: Recipe, length: int) -> None:
        self._recipe = recipe
        self._length = length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, place: int) -> Problem: ...
    @overload
    def __getitem__(self, place: slice) -> list[Problem]: ...
    def __getitem__(self, place: int | slice) -> Problem | list[Problem]:
        chosen = range(self._length)[place]
        return (
            generate(self._recipe, chosen)
            if isinstance(chosen, int)
            else [generate(self._recipe, i) for i in chosen]
        )


def generate(recipe: Recipe, index: int) -> Problem:
    """The problem at `index`, which may be any."""
    rng = random.Random(f"telelogs {recipe.seed} {STREAMS[recipe.split]} {index}")
    cause = _cause(recipe, index)
    place = _draw_place(recipe, rng)
    outline = draw_outline("full" if recipe.style == "full" else "compact", rng)
    scenario, rows = draw_scenario(cause, outline, rng)
    options = randomised_options(cause, rng) if recipe.randomized_labels else PUBLISHED
    listed = rng.sample(scenario.cells, len(scenario.cells))
    if recipe.style == "full":
        question = full_question(options, drive_table(rows, scenario.cells, place), cell_table(listed, place))
    else:
        write = compact_question if recipe.style == "compact" else compact_chat_question
        question = write(options, *_compact_tables(rows, scenario.cells, listed, outline.neighbours, rng))
    return Problem(
        question, tuple(option.printed for option in options), printed_label(options, cause), cause
    )


def _cause(recipe: Recipe, index: int) -> str:
    """Each eight problems in a row have all eight causes, in a random order."""
    block, place = divmod(index, len(LABELS))
    rng = random.Random(f"telelogs causes {recipe.seed} {STREAMS[recipe.split]} {block}")
    return rng.sample(LABELS, len(LABELS))[place]


def _draw_place(recipe: Recipe, rng: random.Random) -> RankDevice:
    """Somewhere between 25 and 50 degrees north, in 2024 or 2025, by day or night; sites of the recipe's split only."""
    sites: list[int] = []
    while len(sites) < _MAX_SITES:
        gnodeb = rng.randrange(1_000_000, 10_000_000)
        if split_of(str(gnodeb), recipe.eval_fraction) == recipe.split and gnodeb not in sites:
            sites.append(gnodeb)
    return RankDevice(
        longitude=rng.uniform(-10, 140),
        latitude=rng.uniform(25, 50),
        start=_FIRST_DAY + datetime.timedelta(milliseconds=rng.randrange(2 * 365 * 86_400_000)),
        gnodeb_ids=tuple(sites),
    )


def _compact_tables(
    rows: Sequence[Row], cells: Sequence[Cell], listed: Sequence[Cell], neighbours: int, rng: random.Random
) -> tuple[str, str]:
    names = rng.sample("abcd", 4)
    return compact_drive_table(rows, cells, neighbours), compact_cell_table(listed, rows, names)
