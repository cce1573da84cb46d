"""Every number that a run tells, what it means, and which belong into one picture. Pure.

The report, W&B, Prometheus, the Grafana dashboard and `docs/metrics.md` are made from here. A metric that is logged and
not in here fails a test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["", "share", "tokens", "s", "tokens/s", "versions", "processes", "prompts"]
Summary = Literal["last", "min", "max", "mean"]


@dataclass(frozen=True, slots=True)
class Metric:
    """`summary`: how a whole run is told in one number; None for what is not worth one."""

    key: str
    meaning: str
    unit: Unit = ""
    summary: Summary | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """Metrics that are read together, over the step. Those that are `counted` are not averaged over steps."""

    title: str
    keys: tuple[str, ...]
    counted: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """What answers one question. `prefixes`: of its metrics' keys."""

    title: str
    question: str
    prefixes: tuple[str, ...]
    metrics: tuple[Metric, ...]
    charts: tuple[Chart, ...]


SECTIONS = (
    Section(
        "Evaluation",
        "Does it get better on problems that it has not seen?",
        ("eval",),
        (
            Metric(
                "eval/pass_at_1",
                "share of right answers on held-out prompts, sampled at the training temperature; failed verdicts "
                "count neither way",
                "share",
                "max",
            ),
            Metric("eval/stderr", "standard error of pass@1 over the prompts", "share"),
            Metric("eval/response_tokens_mean", "mean length of the responses", "tokens"),
            Metric(
                "eval/truncated_fraction", "share of the responses that were cut off at the limit", "share"
            ),
            Metric("eval/error_fraction", "share of the responses whose verifier failed", "share"),
        ),
        (
            Chart("pass@1 on held-out prompts", ("eval/pass_at_1",)),
            Chart("cut off, failed verdicts", ("eval/truncated_fraction", "eval/error_fraction")),
        ),
    ),
    Section(
        "Reward",
        "How often are the responses that it learns from right, and how many of them teach anything?",
        ("reward",),
        (
            Metric("reward/mean", "mean reward of the batch's judged responses", "", "last"),
            Metric(
                "reward/correct_fraction", "share of the batch's responses that are right", "share", "last"
            ),
            Metric(
                "reward/zero_variance_fraction",
                "share of groups whose rewards are all alike, and so teach nothing",
                "share",
                "last",
            ),
            Metric(
                "reward/dropped_fraction",
                "share of sampled groups that dynamic sampling dropped; their prompts' ids are in `metrics.jsonl`",
                "share",
            ),
            Metric("reward/overlong_penalty_mean", "mean of what the soft over-long penalty added"),
            Metric(
                "reward/error_fraction", "share of the batch's responses without a verdict", "share", "max"
            ),
            Metric(
                "reward/timeout_fraction",
                "share whose verdict took too long; they are in error_fraction too",
                "share",
                "max",
            ),
        ),
        (
            Chart("mean reward of a batch", ("reward/mean",)),
            Chart("groups that teach nothing", ("reward/zero_variance_fraction", "reward/dropped_fraction")),
            Chart("responses without a verdict", ("reward/error_fraction", "reward/timeout_fraction")),
        ),
    ),
    Section(
        "Objective",
        "What does the update do?",
        ("objective",),
        (
            Metric("objective/alpha", "weight α of the negative advantages in this batch", "", "last"),
            Metric(
                "objective/positive_fraction", "p̂⁺: share of responses with a positive advantage", "share"
            ),
            Metric(
                "objective/negative_fraction", "p̂⁻: share of responses with a negative advantage", "share"
            ),
            Metric(
                "objective/advantage_mass_positive",
                "sum of the positive advantages over all responses: how hard right answers push",
            ),
            Metric("objective/advantage_mass_negative", "the same of the negative ones, α included"),
            Metric("objective/loss", "what is minimised, in mean over the batch's optimizer steps"),
            Metric("objective/grad_norm", "before it is clipped to learner.max_grad_norm", "", "max"),
            Metric("objective/learning_rate", "of the last optimizer step"),
            Metric("objective/entropy", "of the policy, in mean over response tokens", "", "last"),
            Metric(
                "objective/clip_fraction_low",
                "share of tokens where the objective's lower bound acted",
                "share",
            ),
            Metric(
                "objective/clip_fraction_high",
                "share of tokens where the objective's upper bound acted",
                "share",
            ),
            Metric("objective/ratio_mean", "π_θ / π_old, mean over tokens"),
            Metric("objective/ratio_min", "π_θ / π_old, least of all tokens"),
            Metric("objective/ratio_max", "π_θ / π_old, greatest of all tokens"),
            Metric("objective/kl_to_old", "divergence from the policy that the batch began with"),
            Metric(
                "objective/kl_to_reference", "divergence from the model that the run started with", "", "last"
            ),
            Metric(
                "objective/importance_weight_mean", "the detached weight that corrects for stale sampling"
            ),
            Metric("objective/importance_capped_fraction", "share of those weights at their cap", "share"),
            Metric(
                "objective/gradient_fraction_positive",
                "share of the gradient's size that comes from right answers (learner.measure_gradient_fraction)",
                "share",
            ),
        ),
        (
            Chart("α, the weight of negative advantages", ("objective/alpha",)),
            Chart(
                "responses by the sign of their advantage",
                ("objective/positive_fraction", "objective/negative_fraction"),
            ),
            Chart(
                "how hard each side pushes",
                ("objective/advantage_mass_positive", "objective/advantage_mass_negative"),
            ),
            Chart("loss", ("objective/loss",)),
            Chart("gradient norm", ("objective/grad_norm",)),
            Chart("entropy", ("objective/entropy",)),
            Chart("clipped tokens", ("objective/clip_fraction_low", "objective/clip_fraction_high")),
            Chart(
                "ratio to the old policy",
                ("objective/ratio_min", "objective/ratio_mean", "objective/ratio_max"),
            ),
            Chart("divergence", ("objective/kl_to_old", "objective/kl_to_reference")),
            Chart("learning rate", ("objective/learning_rate",), counted=True),
        ),
    ),
    Section(
        "Lengths",
        "Do responses grow, shrink, or run into the limit?",
        ("lengths",),
        (
            Metric("lengths/mean", "tokens of a response, the end of sequence included", "tokens", "last"),
            Metric("lengths/std", "their standard deviation over the batch", "tokens"),
            Metric("lengths/min", "the shortest", "tokens"),
            Metric("lengths/max", "the longest", "tokens"),
            Metric("lengths/correct_mean", "of the right responses; absent where there are none", "tokens"),
            Metric("lengths/incorrect_mean", "of the wrong ones; absent where there are none", "tokens"),
            Metric(
                "lengths/truncated_fraction",
                "share of responses that were cut off at the limit",
                "share",
                "max",
            ),
        ),
        (
            Chart("response length in tokens", ("lengths/min", "lengths/mean", "lengths/max")),
            Chart("right and wrong responses in tokens", ("lengths/correct_mean", "lengths/incorrect_mean")),
            Chart("cut off", ("lengths/truncated_fraction",)),
        ),
    ),
    Section(
        "Staleness and agreement",
        "Is what is learned from what the policy would say now, and do sampler and learner agree on how likely it is?",
        ("staleness", "logprob_gap"),
        (
            Metric(
                "staleness/mean",
                "weight versions that a sample was behind when it was learned from; 0 is on-policy",
                "versions",
                "mean",
            ),
            Metric("staleness/max", "the most of any sample", "versions", "max"),
            Metric(
                "logprob_gap/mean",
                "sampler's and learner's log-probabilities, mean difference by token",
                "",
                "max",
            ),
            Metric("logprob_gap/max", "the greatest of the batch", "", "max"),
            Metric(
                "logprob_gap/probe_max", "the same on a fixed probe, after the weights were pulled", "", "max"
            ),
            Metric(
                "logprob_gap/missing_fraction",
                "share of tokens without a log-probability from the sampler; above 1 % the run stops",
                "share",
                "max",
            ),
        ),
        (
            Chart("staleness in weight versions", ("staleness/mean", "staleness/max")),
            Chart("disagreement over log-probabilities", ("logprob_gap/mean", "logprob_gap/probe_max")),
        ),
    ),
    Section(
        "Throughput",
        "How fast is it?",
        ("throughput",),
        (
            Metric(
                "throughput/rollout_tokens_per_s",
                "sampled, while the learner waited for them",
                "tokens/s",
                "mean",
            ),
            Metric("throughput/learner_tokens_per_s", "learned from, while it learned", "tokens/s", "mean"),
        ),
        (
            Chart("tokens sampled per second", ("throughput/rollout_tokens_per_s",)),
            Chart("tokens learned from per second", ("throughput/learner_tokens_per_s",)),
        ),
    ),
    Section(
        "Time",
        "Where does a step's time go?",
        ("time",),
        (
            Metric("time/step_s", "one turn of the loop, without evaluation and checkpoint", "s", "mean"),
            Metric("time/rollout_s", "waiting for a batch of scored groups", "s", "mean"),
            Metric("time/learn_s", "in the learner ranks", "s", "mean"),
            Metric("time/publish_s", "handing the new weights over", "s", "mean"),
            Metric("time/evaluate_s", "evaluating; absent where there was none", "s"),
            Metric("time/checkpoint_s", "saving, of the checkpoint before this row", "s"),
        ),
        (
            Chart("seconds per step", ("time/step_s", "time/rollout_s", "time/learn_s", "time/publish_s")),
            Chart("seconds per evaluation and checkpoint", ("time/evaluate_s", "time/checkpoint_s")),
        ),
    ),
    Section(
        "Fleet and progress",
        "Who works, and how far is it?",
        ("fleet", "progress"),
        (
            Metric("fleet/healthy_workers", "rollout workers that are up", "processes", "last"),
            Metric("fleet/workers", "rollout workers that were asked for", "processes", "last"),
            Metric("fleet/restarts", "how often one was replaced, before resumptions too", "", "last"),
            Metric("progress/step", "batches learned from (in `metrics.jsonl` and W&B: `step`)"),
            Metric("progress/weight_version", "of the published weights: the number of batches learned from"),
            Metric("progress/epoch", "passes over the training prompts"),
            Metric("progress/prompts_trained", "learned from, so far", "prompts", "last"),
            Metric("progress/prompts_dropped", "given up by dynamic sampling, so far", "prompts", "last"),
        ),
        (
            Chart("rollout workers", ("fleet/workers", "fleet/healthy_workers"), counted=True),
            Chart("restarts", ("fleet/restarts",), counted=True),
            Chart("prompts", ("progress/prompts_trained", "progress/prompts_dropped"), counted=True),
        ),
    ),
)

CHARTED = frozenset(key for section in SECTIONS for chart in section.charts for key in chart.keys)
METRICS = {metric.key: metric for section in SECTIONS for metric in section.metrics}


def gauge_name(key: str) -> str:
    """Of the gauge in Ray: `hpo_reward_mean`."""
    return f"hpo_{key.replace('/', '_')}"


def gauge_description(key: str) -> str:
    """Ray takes ASCII only, and what the metrics mean is not: so this says where to read it."""
    return f"{key} of hpo-trainer: docs/metrics.md"


def prometheus_name(key: str) -> str:
    """As Prometheus sees it: Ray puts its own name in front."""
    return f"ray_{gauge_name(key)}"
