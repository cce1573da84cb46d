"""The entries of the catalogue for the rescue of prompts whose responses are all incorrect. Pure."""

from __future__ import annotations

from cluster.metrics.entries import Chart, Metric, Section

RESCUE = Section(
    "Rescue",
    "How often do the methods of `rescue.*` that are on act, and what do they bring?",
    ("rescue",),
    (
        Metric(
            "rescue/known_successes",
            "number of training problems with a known correct response, which can give prefixes and replays",
            "prompts",
            "last",
        ),
        Metric(
            "rescue/prefixed_fraction",
            "fraction of the sampled responses that began with a prefix of an earlier correct response",
            "fraction",
        ),
        Metric(
            "rescue/prefix_correct_fraction",
            "fraction of the responses with a prefix that are correct; absent without such responses",
            "fraction",
        ),
        Metric(
            "rescue/prefix_informative_fraction",
            "fraction of the groups with prefixes that have both correct and incorrect responses",
            "fraction",
        ),
        Metric(
            "rescue/replayed_fraction",
            "fraction of the batch's groups to which an earlier correct response was added; without it they would be "
            "all incorrect",
            "fraction",
        ),
        Metric(
            "rescue/replay_age_mean",
            "mean age of the replays, in steps since their weights were published; absent without replays",
        ),
        Metric(
            "rescue/examples_probability",
            "probability that a prompt which is admitted in this step has solved examples",
            "fraction",
        ),
        Metric(
            "rescue/example_fraction", "fraction of the sampled groups whose prompt had examples", "fraction"
        ),
        Metric(
            "rescue/example_correct_fraction",
            "fraction of the responses to prompts with examples that are correct; absent without such prompts",
            "fraction",
        ),
        Metric(
            "rescue/example_informative_fraction",
            "fraction of the groups with examples that have both correct and incorrect responses",
            "fraction",
        ),
    ),
    (
        Chart(
            "help: how often",
            (
                "rescue/prefixed_fraction",
                "rescue/replayed_fraction",
                "rescue/example_fraction",
                "rescue/examples_probability",
            ),
        ),
        Chart(
            "help: fraction of correct responses",
            ("rescue/prefix_correct_fraction", "rescue/example_correct_fraction"),
        ),
        Chart(
            "help: groups with both correct and incorrect responses",
            ("rescue/prefix_informative_fraction", "rescue/example_informative_fraction"),
        ),
        Chart("help: problems with a known correct response", ("rescue/known_successes",), counted=True),
        Chart("help: age of the replays", ("rescue/replay_age_mean",)),
    ),
)
