"""The entries of the catalogue for `rollout.adaptive_budget`. Pure."""

from __future__ import annotations

from cluster.metrics.entries import Chart, Metric, Section

BUDGET = Section(
    "Adaptive budget",
    "How many groups got more responses, and did they find a correct one? Only with `rollout.adaptive_budget`.",
    ("budget",),
    (
        Metric("budget/responses", "number of responses in the batch"),
        Metric(
            "budget/extended_fraction",
            "fraction of sampled groups that got more responses, because none of theirs was correct",
            "fraction",
        ),
        Metric(
            "budget/rescued_fraction",
            "fraction of the extended groups that have a correct response; absent if no group was extended",
            "fraction",
            "mean",
        ),
    ),
    (
        Chart("responses per batch", ("budget/responses",), counted=True),
        Chart("extended groups", ("budget/extended_fraction", "budget/rescued_fraction")),
    ),
)
