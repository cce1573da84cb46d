"""The distribution of pass rates over prompts, from a sample of prompts with a few responses each. Pure numpy.

The model has three parameters. A fraction z of the prompts is never solved; the pass rates of the others have a Beta
distribution with mean μ and intraclass correlation ρ, that is Beta(a, b) with μ = a / (a + b) and ρ = 1 / (a + b + 1).
So the number of correct responses to a prompt is Beta-binomial, with more zeros. ρ = 0 means that all these prompts are
equally difficult, ρ = 1 that each of them is either always or never solved.

A prior and the sample give a posterior distribution of the parameters, which is computed on a grid, without random
numbers. Prior (ours): μ and ρ are uniform on (0, 1). z is 0 with probability 1/2, and otherwise uniform, so that the
sample decides how much the fraction of unsolvable prompts counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from cluster.metrics.intervals import CONFIDENCE

METHOD = (
    "central credible interval of a Beta distribution with a fraction of unsolvable prompts (docs/plan.md)"
)

_LIMITS = np.array([[-14.0, 14.0], [-12.0, 12.0], [-7.0, 7.0]])
"""The range of the grid: the log-odds of μ, ρ and z. The prior has less than 0.2 % outside."""
_NODES, _FINAL_NODES = (25, 25, 25), (35, 35, 25)
"""The numbers of grid points along each axis, while the grid is being placed and for the result."""
_OUTSIDE = 1e-6
"""The probability that a grid may leave out on each side of an axis."""
_NEGLIGIBLE = 1e-7
"""Points of the grid with less than this fraction of the largest weight are left out."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A quantity with its interval: the median of its posterior, and the limits of its central 95 %."""

    estimate: float
    low: float
    high: float

    def under(self, function: Callable[[float], float]) -> Quantity:
        """Return the monotone `function` of this quantity."""
        limits = function(self.low), function(self.high)
        return Quantity(function(self.estimate), min(limits), max(limits))


@dataclass(frozen=True, slots=True)
class PassCounts:
    """The number of correct ones among `responses` responses to each sampled prompt.

    Raises:
        ValueError: unless there is a prompt and a response, and each number is between 0 and `responses`.
    """

    correct: tuple[int, ...]
    responses: int

    def __post_init__(self) -> None:
        if not self.correct or not all(0 <= correct <= self.responses for correct in self.correct):
            raise ValueError(
                f"{len(self.correct)} prompts do not have 0 to {self.responses} correct responses"
            )
        if self.responses < 1:
            raise ValueError("there are no responses")

    @property
    def histogram(self) -> np.ndarray:
        """The number of prompts with 0, 1, … correct responses: int [responses + 1]."""
        return np.bincount(self.correct, minlength=self.responses + 1)


class PassRates:
    """The posterior distribution of the parameters: weighted points (μ, ρ, z). Every array is [points].

    Usage:
        rates = PassRates.from_counts(PassCounts((0, 3, 1), responses=16))
        rates.quantity(rates.mean)              # the mean pass rate over prompts, with its interval
    """

    def __init__(self, mu: np.ndarray, rho: np.ndarray, z: np.ndarray, weights: np.ndarray) -> None:
        self.mu = mu
        """The mean pass rate of the prompts that can be solved."""
        self.rho = rho
        """The intraclass correlation of these prompts."""
        self.z = z
        """The fraction of unsolvable prompts."""
        self._weights = weights / weights.sum()

    @staticmethod
    def from_counts(counts: PassCounts) -> PassRates:
        """Return the posterior after the sample `counts`."""
        grids = [_placed_grid(counts, axes) for axes in (2, 3)]
        points = np.concatenate([grid.points for grid in grids])
        log_weights = np.concatenate([grid.log_weights.ravel() for grid in grids])
        log_weights -= log_weights.max()
        kept = log_weights > math.log(_NEGLIGIBLE)
        mu, rho, z = points[kept].T
        return PassRates(mu, rho, z, np.exp(log_weights[kept]))

    @property
    def mean(self) -> np.ndarray:
        """The mean pass rate over all prompts."""
        found: np.ndarray = (1 - self.z) * self.mu
        return found

    @property
    def unsolvable_probability(self) -> float:
        """The probability that there are unsolvable prompts at all. It is 1/2 before the sample."""
        return float(self._weights[self.z > 0].sum())

    def quantity(self, values: np.ndarray) -> Quantity:
        """Return the median and the central 95 % of a function of the parameters."""
        order = np.argsort(values)
        position = np.cumsum(self._weights[order]) - self._weights[order] / 2
        low, median, high = np.interp(
            [(1 - CONFIDENCE) / 2, 0.5, (1 + CONFIDENCE) / 2], position, values[order]
        )
        return Quantity(float(median), float(low), float(high))

    def average(self, values: np.ndarray) -> np.ndarray:
        """Return the posterior mean of `values` [points, …]."""
        averaged: np.ndarray = np.tensordot(self._weights, values, axes=1)
        return averaged

    def none_solved(self, responses: int) -> np.ndarray:
        """Return E[(1 − p)^G]: the fraction of prompts that none of G responses solves."""
        found: np.ndarray = self.z + (1 - self.z) * np.exp(_log_none(self.mu, self.rho, responses))
        return found

    def all_solved(self, responses: int) -> np.ndarray:
        """Return E[p^G]: the fraction of prompts that all of G responses solve."""
        found: np.ndarray = (1 - self.z) * np.exp(_log_none(1 - self.mu, self.rho, responses))
        return found

    def informative(self, responses: int) -> np.ndarray:
        """Return 1 − E[(1 − p)^G] − E[p^G]: the fraction of groups of G responses with correct and incorrect ones."""
        some_solved = -np.expm1(_log_none(self.mu, self.rho, responses))
        all_solved = np.exp(_log_none(1 - self.mu, self.rho, responses))
        found: np.ndarray = (1 - self.z) * np.maximum(some_solved - all_solved, 0.0)
        return found

    def count_probabilities(self, responses: int) -> Iterator[np.ndarray]:
        """Yield the probability of 0, 1, … `responses` correct responses to a prompt, each [points]."""
        logarithm = _log_none(self.mu, self.rho, responses)
        for correct in range(responses + 1):
            yield (1 - self.z) * np.exp(logarithm) + (self.z if correct == 0 else 0.0)
            if correct < responses:
                left = responses - correct
                logarithm = logarithm + (
                    math.log(left / (correct + 1))
                    + np.log(self.mu * (1 - self.rho) + correct * self.rho)
                    - np.log((1 - self.mu) * (1 - self.rho) + (left - 1) * self.rho)
                )


@dataclass(frozen=True, slots=True)
class _Grid:
    """A grid of parameters with the logarithms of prior × likelihood × the volume of a cell."""

    axes: tuple[np.ndarray, ...]
    """The log-odds of μ, ρ and, unless z is 0, z along each axis."""
    log_weights: np.ndarray
    """One per grid point: [nodes of axis 0, nodes of axis 1, …]."""

    @property
    def points(self) -> np.ndarray:
        """The parameters (μ, ρ, z) of all points: [points, 3]."""
        parameters = [_expit(values).ravel() for values in np.meshgrid(*self.axes, indexing="ij")]
        return np.stack([*parameters, np.zeros_like(parameters[0])][:3], axis=1)

    def narrowed(self) -> np.ndarray:
        """Return limits that leave out almost no probability: [axes, 2]. Each axis shrinks at most by half, so that
        what is narrower than a cell is not missed."""
        weights = np.exp(self.log_weights - self.log_weights.max())
        limits = np.empty((len(self.axes), 2))
        for axis, nodes in enumerate(self.axes):
            marginal = weights.sum(axis=tuple(other for other in range(len(self.axes)) if other != axis))
            inside = np.flatnonzero(
                np.minimum(np.cumsum(marginal), np.cumsum(marginal[::-1])[::-1]) > _OUTSIDE * marginal.sum()
            )
            low, high = nodes[max(inside[0] - 1, 0)], nodes[min(inside[-1] + 1, len(nodes) - 1)]
            spare = max(0.0, (nodes[-1] - nodes[0]) / 2 - (high - low)) / 2
            limits[axis] = max(low - spare, nodes[0]), min(high + spare, nodes[-1])
        return limits


def _placed_grid(counts: PassCounts, axes: int) -> _Grid:
    """Return a fine grid around the posterior: of μ and ρ with z = 0, or of all three parameters."""
    limits = _LIMITS[:axes]
    while True:
        narrowed = _grid(counts, limits, _NODES).narrowed()
        if (np.diff(narrowed) > 0.8 * np.diff(limits)).all():
            return _grid(counts, narrowed, _FINAL_NODES)
        limits = narrowed


def _grid(counts: PassCounts, limits: np.ndarray, nodes: tuple[int, ...]) -> _Grid:
    axes = tuple(np.linspace(low, high, count) for (low, high), count in zip(limits, nodes, strict=False))
    log_odds = np.meshgrid(*axes, indexing="ij", sparse=True)
    log_weights = _log_likelihood(counts, *(_expit(values) for values in log_odds))
    for values, axis in zip(log_odds, axes, strict=True):
        # A uniform prior of the parameter x has the density x (1 − x) of the log-odds.
        log_weights = (
            log_weights - np.logaddexp(0, values) - np.logaddexp(0, -values) + math.log(axis[1] - axis[0])
        )
    return _Grid(axes, log_weights)


def _log_likelihood(
    counts: PassCounts, mu: np.ndarray, rho: np.ndarray, z: np.ndarray | float = 0.0
) -> np.ndarray:
    """Return the logarithm of the likelihood, without the binomial coefficients, which do not depend on parameters."""
    solved = np.array([correct for correct in counts.correct if correct])
    unsolved = len(counts.correct) - len(solved)
    likelihood = np.zeros(np.broadcast_shapes(mu.shape, rho.shape))
    for drawn in range(counts.responses):  # Pólya's urn: each term is the probability of one more response
        likelihood = likelihood + (
            np.sum(solved > drawn) * np.log(mu * (1 - rho) + drawn * rho)
            + np.sum(counts.responses - solved > drawn) * np.log((1 - mu) * (1 - rho) + drawn * rho)
            - len(solved) * np.log(1 - rho + drawn * rho)
        )
    with np.errstate(divide="ignore"):
        log_z = np.log(z)
    none = np.logaddexp(log_z, np.log1p(-z) + _log_none(mu, rho, counts.responses))
    total: np.ndarray = likelihood + len(solved) * np.log1p(-z) + unsolved * none
    return total


def _log_none(mu: np.ndarray, rho: np.ndarray, responses: int) -> np.ndarray:
    """Return log E[(1 − p)^G] for a Beta distribution with mean μ and intraclass correlation ρ."""
    total = np.zeros(np.broadcast_shapes(mu.shape, rho.shape))
    for drawn in range(responses):
        total = total + np.log((1 - mu) * (1 - rho) + drawn * rho) - np.log(1 - rho + drawn * rho)
    return total


def _expit(log_odds: np.ndarray) -> np.ndarray:
    """Return the probability with these log-odds."""
    found: np.ndarray = np.exp(-np.logaddexp(0, -log_odds))
    return found
