"""Draws what the cells are called: PCIs, and numbers within their site."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from reward.tasks.telelogs.causes import PCI_MODULUS
from reward.tasks.telelogs.network import Cell
from reward.tasks.telelogs.outline import LOOKALIKE_SHARE


def draw_colliding(
    label: str, strong: Sequence[int], weak: Sequence[int], rng: random.Random
) -> frozenset[int]:
    """Cells that have the serving cell's PCI modulo 30: a strong neighbour in C6, and now and then one too weak to
    matter in any."""
    lookalike = [rng.choice(weak)] if weak and rng.random() < LOOKALIKE_SHARE else []
    return frozenset([*(strong[:1] if label == "C6" else []), *lookalike])


def with_pcis(
    cells: Sequence[Cell], colliding: frozenset[int], largest_pci: int, rng: random.Random
) -> list[Cell]:
    """Different PCIs, such that with the sectors of the serving site only `colliding` ones collide."""
    own_site = cells[0].gnodeb
    free = set(range(largest_pci + 1))
    own: set[int] = set()  # remainders of the serving site
    pcis: list[int] = []
    for j, cell in enumerate(cells):
        wanted = {pcis[0] % PCI_MODULUS} if j in colliding else set(range(PCI_MODULUS)) - own
        while (pci := rng.randint(0, largest_pci)) not in free or pci % PCI_MODULUS not in wanted:
            pass
        pcis.append(pci)
        free.remove(pci)
        if cell.gnodeb == own_site:
            own.add(pci % PCI_MODULUS)
    return [replace(cell, pci=pci) for cell, pci in zip(cells, pcis, strict=True)]


def numbered(cells: Sequence[Cell], rng: random.Random) -> list[Cell]:
    """With the numbers within each site in any order: they must not tell who serves."""
    numbers = {site: rng.sample(range(3), 3) for site in {cell.gnodeb: None for cell in cells}}
    return [replace(cell, number=numbers[cell.gnodeb][cell.number]) for cell in cells]
