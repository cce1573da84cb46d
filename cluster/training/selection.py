"""The choice of training prompts by what a group of responses to them would teach. Pure.

A prompt whose responses are correct with probability p gives rewards of variance p(1 − p): none if it is always or
never solved, and most at p = ½. For each row of the training data, p is believed to have the distribution

    Beta(a, b),  a = 1 + the decayed number of correct responses,  b = 1 + that of incorrect ones,

    E[p(1 − p)] = E[p] − E[p²] = a/s − a(a + 1)/(s(s + 1)) = ab / (s(s + 1)),  s = a + b,

and rows are drawn with this weight. Each group of a row multiplies the row's earlier counts by `DECAY`, because the
policy has changed since. A fraction `EXPLORATION` of the draws is uniform over all rows, so that no row is lost,
whatever is believed of it. A row in flight is not drawn again until its group has been observed.

The ideas are those of prime-rl's sampler of difficulty pools and of Prompt Replay (arXiv 2603.21177), whose prompts
come back near p = ½; the formulas are derived here.

Weights are integers. Their sums are exact in any order, so the draws of a resumed run are those of an uninterrupted
one, bit for bit. Draw k uses a random generator of its own, from the run's seed and k: k is the only random state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from cluster.run_state.selection_state import SelectionState

PRIOR = (1.0, 1.0)
"""The parameters a and b of a prompt without any evidence: every p is equally likely. Its weight, 1/6, is two thirds of
the largest one, so new prompts are tried early."""
DECAY = 0.5
"""The factor of the earlier counts when a new group arrives: the new group has as much influence as all earlier ones
together, because many updates of the policy lie between two groups of a row."""
EXPLORATION = Fraction(1, 10)
"""The fraction of draws that is uniform. A row that is not in flight waits at most rows / EXPLORATION draws on average,
which is ten epochs."""
_UNIT = 2**32
"""The integer that stands for the weight 1. Weights are at most 1/4, so the sum over 2^33 rows fits into 64 bits."""
_BLOCK_ROWS = 1024


class Evidence(NamedTuple):
    """The responses of one group that tell how often the policy solves the prompt of `row`."""

    row: int
    correct: int
    incorrect: int


def signal_weights(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return E[p(1 − p)] under Beta(a, b), from float64 [rows] each, in units of 2⁻³²: int64 [rows], at least 1."""
    total = a + b
    weights: np.ndarray = np.rint((a / total) * (b / (total + 1.0)) * _UNIT)
    return np.maximum(1, weights.astype(np.int64))


class Selection:
    """The beliefs about all rows, and the draws from them.

    Usage:
        selection = Selection(SelectionState.initial(rows=10_000))
        row = selection.draw(seed=0, number=17)
        ...
        selection.observe([Evidence(row, correct=3, incorrect=13)], trained=[row], dropped=[])
    """

    def __init__(self, state: SelectionState) -> None:
        """Continue from a copy of `state`."""
        self._state = state.copy()
        self._weights = signal_weights(*self._posterior(np.arange(state.rows)))
        self._fill_urn()

    @property
    def state(self) -> SelectionState:
        """A copy of the state, which a checkpoint stores."""
        return self._state.copy()

    def posterior(self, row: int) -> tuple[float, float]:
        """Return the parameters a and b of the row's success probability."""
        a, b = self._posterior(np.array([row]))
        return float(a[0]), float(b[0])

    def times_drawn(self, row: int) -> int:
        """Return the number of times that the row was drawn."""
        return int(self._state.drawn[row])

    def draw(self, seed: int, number: int) -> int:
        """Return the row of draw `number` of the run with this seed. It is in flight from now on.

        Raises:
            ValueError: if all rows are in flight. Preflight refuses runs in which this could happen.
        """
        if not self._urn.total:
            raise ValueError(f"all {self._state.rows} training prompts are in flight, and one more is needed")
        chance = np.random.default_rng((seed, number))
        row = self._urn.take(int(chance.integers(self._urn.total)))
        self._state.drawn[row] += 1
        return row

    def observe(self, evidence: Sequence[Evidence], trained: Sequence[int], dropped: Sequence[int]) -> None:
        """Learn from the groups of a batch, and let their rows be drawn again.

        Args:
            evidence: At most one entry per row. An entry without any response changes nothing.
            trained: The rows that the batch was trained on, which were in flight.
            dropped: The rows whose groups were dropped.

        Raises:
            ValueError: if a row that is not in flight was trained on or dropped.
        """
        settled = np.array([*trained, *dropped], dtype=np.int64)
        if len(np.unique(settled)) != len(settled) or not self._state.in_flight[settled].all():
            raise ValueError(f"rows were settled that are not in flight: {settled.tolist()}")
        self._state.trained[list(trained)] += 1
        self._state.dropped[list(dropped)] += 1
        new = np.array([entry for entry in evidence if entry.correct or entry.incorrect], dtype=np.int64)
        if new.size:
            rows, correct, incorrect = new.T
            self._state.correct[rows] = DECAY * self._state.correct[rows] + correct
            self._state.incorrect[rows] = DECAY * self._state.incorrect[rows] + incorrect
            self._weights[rows] = signal_weights(*self._posterior(rows))
        self._fill_urn()

    def relative_signal(self, rows: Sequence[int]) -> float:
        """Return the mean weight of `rows` divided by that of all rows. A uniform choice has 1 on average."""
        return float(self._weights[list(rows)].mean() / self._weights.mean())

    @property
    def drawn_fraction(self) -> float:
        """The fraction of the rows that were drawn at least once."""
        return float((self._state.drawn > 0).mean())

    @property
    def most_trained(self) -> int:
        """The largest number of batches that were trained on the prompt of one row."""
        return int(self._state.trained.max())

    def _posterior(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return PRIOR[0] + self._state.correct[rows], PRIOR[1] + self._state.incorrect[rows]

    def _fill_urn(self) -> None:
        """Give each row that is not in flight its weight and the floor.

        With W, the sum of all N weights, and floor ≥ ε/(1 − ε) · W/N, a row that is not in flight has at least the
        chance floor / (W + N floor) ≥ ε/N.
        """
        total, rows = int(self._weights.sum()), self._state.rows
        floor = math.ceil(EXPLORATION / (1 - EXPLORATION) * total / rows)
        self._urn = _Urn(np.where(self._state.in_flight == 0, self._weights + floor, 0))


class _Urn:
    """Rows that are taken out one by one, each with a chance in proportion to its mass.

    The masses are summed in blocks, so that a draw looks at √rows numbers, roughly, and not at all of them.
    """

    def __init__(self, masses: np.ndarray) -> None:
        """Fill the urn with `masses`: int64 [rows]."""
        blocks = -(-len(masses) // _BLOCK_ROWS)
        self.masses = np.zeros(blocks * _BLOCK_ROWS, dtype=np.int64)
        self.masses[: len(masses)] = masses
        self._block_masses = self.masses.reshape(blocks, _BLOCK_ROWS).sum(axis=1)
        self.total = int(self._block_masses.sum())

    def take(self, target: int) -> int:
        """Take out and return the row that has the unit of mass number `target` (0 ≤ target < total)."""
        block, within = _containing(self._block_masses, target)
        start = block * _BLOCK_ROWS
        row = start + _containing(self.masses[start : start + _BLOCK_ROWS], within)[0]
        mass = int(self.masses[row])
        self.masses[row] = 0
        self._block_masses[block] -= mass
        self.total -= mass
        return row


def _containing(masses: np.ndarray, target: int) -> tuple[int, int]:
    """Return the index of the entry that has unit number `target`, and the number of the unit within the entry."""
    ends = np.cumsum(masses)
    index = int(np.searchsorted(ends, target, side="right"))
    return index, target - int(ends[index] - masses[index])
