"""The generator of problems. Seed, split and index decide a problem, so it is the same in every process."""

from __future__ import annotations

import datetime
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, overload

from cluster.core.types import Split
from reward.task import STREAMS
from reward.tasks.telelogs.causes import LABELS
from reward.tasks.telelogs.drive import Cell, Row
from reward.tasks.telelogs.outline import draw_outline
from reward.tasks.telelogs.problem import PUBLISHED, Problem, printed_label, randomized_options, split_of
from reward.tasks.telelogs.prompts import (
    Setting,
    cell_table,
    compact_cell_table,
    compact_chat_question,
    compact_drive_table,
    compact_question,
    drive_table,
    full_question,
)
from reward.tasks.telelogs.scenario import draw_scenario

Style = Literal["full", "compact", "compact_chat"]

_MAX_SITES = 4
_FIRST_DAY = datetime.datetime(2024, 1, 1)


@dataclass(frozen=True, slots=True)
class GeneratorOptions:
    """The options that decide the problems of a split."""

    split: Split
    style: Style = "full"
    randomized_labels: bool = False
    seed: int = 0
    eval_fraction: float = 0.1


class GeneratedProblems(Sequence[Problem]):
    """The first `length` problems. Each is generated when it is accessed, which takes a few milliseconds."""

    def __init__(self, options: GeneratorOptions, length: int) -> None:
        self._options = options
        self._length = length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        chosen = range(self._length)[index]
        return (
            generate(self._options, chosen)
            if isinstance(chosen, int)
            else [generate(self._options, i) for i in chosen]
        )


def generate(options: GeneratorOptions, index: int) -> Problem:
    """Return the problem at `index`, which may be any number."""
    rng = random.Random(f"telelogs {options.seed} {STREAMS[options.split]} {index}")
    cause = _cause(options, index)
    setting = _draw_setting(options, rng)
    outline = draw_outline("full" if options.style == "full" else "compact", rng)
    scenario, rows = draw_scenario(cause, outline, rng)
    offered = randomized_options(cause, rng) if options.randomized_labels else PUBLISHED
    listed = rng.sample(scenario.cells, len(scenario.cells))
    if options.style == "full":
        drive, listing = drive_table(rows, scenario.cells, setting), cell_table(listed, setting)
        question = full_question(offered, drive, listing)
    else:
        write = compact_question if options.style == "compact" else compact_chat_question
        question = write(offered, *_compact_tables(rows, scenario.cells, listed, outline.neighbours, rng))
    return Problem(
        question, tuple(option.printed for option in offered), printed_label(offered, cause), cause
    )


def _cause(options: GeneratorOptions, index: int) -> str:
    """Return the cause at `index`. Each block of eight problems has all eight causes in random order."""
    block, position = divmod(index, len(LABELS))
    rng = random.Random(f"telelogs causes {options.seed} {STREAMS[options.split]} {block}")
    return rng.sample(LABELS, len(LABELS))[position]


def _draw_setting(options: GeneratorOptions, rng: random.Random) -> Setting:
    """Draw a place between 25 and 50 degrees north, a time in 2024 or 2025, and site ids of the right split."""
    sites: list[int] = []
    while len(sites) < _MAX_SITES:
        gnodeb = rng.randrange(1_000_000, 10_000_000)
        if split_of(str(gnodeb), options.eval_fraction) == options.split and gnodeb not in sites:
            sites.append(gnodeb)
    return Setting(
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
