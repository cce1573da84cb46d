"""The catalogue's entries of the informative selection. Pure."""

from __future__ import annotations

from cluster.metrics.entries import Chart, Metric, Section

SELECTION = Section(
    "Selection",
    "Which training prompts are drawn, and how often? Logged only with `task.selection: informative`.",
    ("selection",),
    (
        Metric(
            "selection/expected_signal",
            "expected reward variance E[p(1 − p)] of the prompts that were sampled for the batch, divided by its mean "
            "over all training prompts; 1 is a uniform choice",
            "",
            "mean",
        ),
        Metric(
            "selection/repeated_fraction",
            "fraction of the prompts that were sampled for the batch and had been drawn before",
            "fraction",
        ),
        Metric(
            "selection/prompts_seen_fraction",
            "fraction of the training prompts that were drawn at least once so far",
            "fraction",
            "last",
        ),
        Metric(
            "selection/trained_max",
            "largest number of batches so far that were trained on the same prompt",
            "",
            "last",
        ),
    ),
    (
        Chart("expected reward variance, relative to a uniform choice", ("selection/expected_signal",)),
        Chart(
            "prompts seen and repeated",
            ("selection/prompts_seen_fraction", "selection/repeated_fraction"),
        ),
        Chart("most batches trained on one prompt", ("selection/trained_max",), counted=True),
    ),
)
