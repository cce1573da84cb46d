"""The catalogue of metrics: their meanings, their units, and the charts that show them. Pure.

The report, W&B, Prometheus, the Grafana dashboard and `docs/metrics.md` are generated from it. A test fails if a run
logs a metric that is missing here.
"""

from __future__ import annotations

from cluster.metrics.budget_entries import BUDGET
from cluster.metrics.entries import Chart, Metric, Section
from cluster.metrics.rescue_entries import RESCUE
from cluster.metrics.selection_entries import SELECTION

_EVALUATION = Section(
    "Evaluation",
    "Does the policy improve on problems outside the training set?",
    ("eval",),
    (
        Metric(
            "eval/pass_at_1",
            "fraction of correct responses to the eval prompts, sampled at the training temperature; mean over "
            "prompts, without responses whose verifier failed",
            "fraction",
            "max",
        ),
        Metric("eval/pass_at_1_stderr", "standard error of `eval/pass_at_1` over the prompts", "fraction"),
        Metric(
            "eval/pass_at_k",
            "probability that at least one of k responses is correct, with k = `evaluation.responses_per_prompt`; mean "
            "over prompts; absent if k is 1",
            "fraction",
            "max",
        ),
        Metric("eval/response_length_mean", "mean response length", "tokens"),
        Metric("eval/truncated_fraction", "fraction of responses truncated at the length limit", "fraction"),
        Metric("eval/error_fraction", "fraction of responses whose verifier failed", "fraction"),
    ),
    (
        Chart("pass@1 on eval prompts", ("eval/pass_at_1",)),
        Chart("pass@k on eval prompts", ("eval/pass_at_k",)),
        Chart(
            "truncated responses and verifier failures", ("eval/truncated_fraction", "eval/error_fraction")
        ),
    ),
)

_REWARD = Section(
    "Reward",
    "How many training responses are correct, and how many groups give a gradient signal?",
    ("reward",),
    (
        Metric(
            "reward/mean",
            "mean reward of the batch's responses that have a verdict; of an extended group only the first "
            "`rollout.responses_per_prompt` count, because extensions choose the hard prompts",
            "",
            "last",
        ),
        Metric(
            "reward/correct_fraction",
            "fraction of these responses that are correct, those whose verifier failed included",
            "fraction",
            "last",
        ),
        Metric(
            "reward/zero_variance_fraction",
            "fraction of groups with zero reward variance, which give no gradient signal",
            "fraction",
            "last",
        ),
        Metric(
            "reward/dropped_fraction",
            "fraction of sampled groups that dynamic sampling dropped; `metrics.jsonl` has the ids of their prompts",
            "fraction",
        ),
        Metric("reward/overlong_penalty_mean", "mean soft over-long penalty that was added to the rewards"),
        Metric(
            "reward/error_fraction",
            "fraction of the batch's responses whose verifier failed; they are not trained on",
            "fraction",
            "max",
        ),
        Metric(
            "reward/limit_fraction",
            "fraction of the batch's responses that took the verifier to a limit; they count as not correct",
            "fraction",
            "max",
        ),
    ),
    (
        Chart("mean reward per batch", ("reward/mean",)),
        Chart(
            "groups with zero reward variance", ("reward/zero_variance_fraction", "reward/dropped_fraction")
        ),
        Chart(
            "responses that the verifier could not finish", ("reward/error_fraction", "reward/limit_fraction")
        ),
    ),
)

_OBJECTIVE = Section(
    "Objective",
    "How large are the policy updates, and what drives them?",
    ("objective",),
    (
        Metric("objective/alpha", "weight α of the negative advantages in this batch", "", "last"),
        Metric(
            "objective/positive_fraction", "p̂⁺: fraction of responses with a positive advantage", "fraction"
        ),
        Metric(
            "objective/negative_fraction", "p̂⁻: fraction of responses with a negative advantage", "fraction"
        ),
        Metric(
            "objective/advantage_mass_positive",
            "sum of the positive advantages divided by the number of responses",
        ),
        Metric(
            "objective/advantage_mass_negative",
            "sum of the absolute negative advantages, weighted by α, divided by the number of responses",
        ),
        Metric("objective/loss", "loss, mean over the batch's optimizer steps"),
        Metric("objective/grad_norm", "gradient norm before clipping to `learner.max_grad_norm`", "", "max"),
        Metric("objective/learning_rate", "learning rate of the batch's last optimizer step"),
        Metric("objective/entropy", "entropy of the policy, mean over response tokens", "", "last"),
        Metric(
            "objective/clip_fraction_low",
            "fraction of tokens that the objective clipped at its lower bound",
            "fraction",
        ),
        Metric(
            "objective/clip_fraction_high",
            "fraction of tokens that the objective clipped at its upper bound",
            "fraction",
        ),
        Metric("objective/ratio_mean", "importance ratio π_θ / π_old, mean over tokens"),
        Metric("objective/ratio_min", "minimum of π_θ / π_old over tokens"),
        Metric("objective/ratio_max", "maximum of π_θ / π_old over tokens"),
        Metric(
            "objective/kl_to_old", "KL divergence between the policy and π_old, the policy before this batch"
        ),
        Metric(
            "objective/kl_to_reference",
            "KL divergence between the policy and the reference model, from which the run started",
            "",
            "last",
        ),
        Metric(
            "objective/importance_weight_mean",
            "mean of the detached importance weights that correct for stale sampling",
        ),
        Metric(
            "objective/importance_capped_fraction",
            "fraction of the importance weights that were capped",
            "fraction",
        ),
        Metric(
            "objective/gradient_fraction_positive",
            "gradient norm of the positive advantages alone, as a fraction of the sum of the norms of both signs; only "
            "with `learner.measure_gradient_fraction`",
            "fraction",
        ),
    ),
    (
        Chart("weight α of negative advantages", ("objective/alpha",)),
        Chart(
            "responses by sign of advantage", ("objective/positive_fraction", "objective/negative_fraction")
        ),
        Chart(
            "advantage mass by sign (after α)",
            ("objective/advantage_mass_positive", "objective/advantage_mass_negative"),
        ),
        Chart("loss", ("objective/loss",)),
        Chart("gradient norm before clipping", ("objective/grad_norm",)),
        Chart("policy entropy", ("objective/entropy",)),
        Chart("clipped tokens", ("objective/clip_fraction_low", "objective/clip_fraction_high")),
        Chart(
            "importance ratio π_θ / π_old",
            ("objective/ratio_min", "objective/ratio_mean", "objective/ratio_max"),
        ),
        Chart("KL divergence", ("objective/kl_to_old", "objective/kl_to_reference")),
        Chart("learning rate", ("objective/learning_rate",), counted=True),
    ),
)

_RESPONSE_LENGTH = Section(
    "Response length",
    "Do responses get longer or shorter, and do they reach the length limit?",
    ("response_length",),
    (
        Metric(
            "response_length/mean",
            "mean response length over the batch, end-of-sequence tokens included",
            "tokens",
            "last",
        ),
        Metric("response_length/std", "standard deviation of the response lengths in the batch", "tokens"),
        Metric("response_length/min", "length of the shortest response", "tokens"),
        Metric("response_length/max", "length of the longest response", "tokens"),
        Metric(
            "response_length/correct_mean",
            "mean length of correct responses; absent if the batch has no correct response",
            "tokens",
        ),
        Metric(
            "response_length/incorrect_mean",
            "mean length of incorrect responses; absent if the batch has no incorrect response",
            "tokens",
        ),
        Metric(
            "response_length/truncated_fraction",
            "fraction of responses truncated at the length limit",
            "fraction",
            "max",
        ),
    ),
    (
        Chart(
            "response length in tokens",
            ("response_length/min", "response_length/mean", "response_length/max"),
        ),
        Chart(
            "mean response length by correctness, in tokens",
            ("response_length/correct_mean", "response_length/incorrect_mean"),
        ),
        Chart("truncated responses", ("response_length/truncated_fraction",)),
    ),
)

_AGREEMENT = Section(
    "Staleness and log-probability gap",
    "How far off-policy are the samples, and do sampler and learner compute the same log-probabilities?",
    ("staleness", "logprob_gap"),
    (
        Metric(
            "staleness/mean",
            "number of weight versions between the sampling of a response and its update, mean over the batch; "
            "0 is on-policy",
            "versions",
            "mean",
        ),
        Metric("staleness/max", "maximum staleness of any response in the batch", "versions", "max"),
        Metric(
            "logprob_gap/mean",
            "absolute difference between the sampler's and the learner's log-probabilities, mean over tokens",
            "",
            "max",
        ),
        Metric("logprob_gap/max", "maximum of this difference over the batch's tokens", "", "max"),
        Metric(
            "logprob_gap/probe_max",
            "maximum of this difference over a fixed probe text, after the workers have loaded the new weights",
            "",
            "max",
        ),
        Metric(
            "logprob_gap/missing_fraction",
            "fraction of tokens without a log-probability from the sampler; above 1 % the run stops",
            "fraction",
            "max",
        ),
    ),
    (
        Chart("staleness in weight versions", ("staleness/mean", "staleness/max")),
        Chart(
            "log-probability gap between sampler and learner",
            ("logprob_gap/mean", "logprob_gap/probe_max"),
        ),
    ),
)

_THROUGHPUT = Section(
    "Throughput",
    "How many tokens per second are sampled and trained on?",
    ("throughput",),
    (
        Metric(
            "throughput/rollout_tokens_per_s",
            "tokens of the batch's responses per second of waiting for them",
            "tokens/s",
            "mean",
        ),
        Metric(
            "throughput/learner_tokens_per_s",
            "tokens of the batch's responses per second of updating the policy",
            "tokens/s",
            "mean",
        ),
    ),
    (
        Chart("sampled tokens per second", ("throughput/rollout_tokens_per_s",)),
        Chart("trained tokens per second", ("throughput/learner_tokens_per_s",)),
    ),
)

_TIME = Section(
    "Time",
    "How is the time of a step spent?",
    ("time",),
    (
        Metric("time/step_s", "duration of a training step, without evaluation and checkpoint", "s", "mean"),
        Metric("time/rollout_s", "time spent waiting for a batch of scored groups", "s", "mean"),
        Metric("time/learn_s", "time spent updating the policy in the learner ranks", "s", "mean"),
        Metric("time/publish_s", "time spent publishing the new weights", "s", "mean"),
        Metric("time/evaluate_s", "duration of the evaluation; absent at steps without one", "s"),
        Metric("time/checkpoint_s", "duration of saving the checkpoint that precedes this row", "s"),
    ),
    (
        Chart("seconds per step", ("time/step_s", "time/rollout_s", "time/learn_s", "time/publish_s")),
        Chart("seconds per evaluation and checkpoint", ("time/evaluate_s", "time/checkpoint_s")),
    ),
)

_FLEET = Section(
    "Fleet and progress",
    "How many rollout workers are healthy, and how far is the run?",
    ("fleet", "progress"),
    (
        Metric("fleet/healthy_workers", "number of healthy rollout workers", "processes", "last"),
        Metric("fleet/workers", "number of rollout workers that the run asks for", "processes", "last"),
        Metric(
            "fleet/restarts",
            "number of worker restarts so far, those before a resumption included",
            "",
            "last",
        ),
        Metric("progress/step", "number of batches trained on (`step` in `metrics.jsonl` and W&B)"),
        Metric(
            "progress/weight_version",
            "version of the published weights, which is the number of batches trained on",
        ),
        Metric(
            "progress/epoch",
            "number of passes over the training prompts; with `task.selection: informative`, the number of prompts "
            "drawn in whole multiples of the number of training prompts",
        ),
        Metric(
            "progress/responses_sampled",
            "number of responses to the prompts that were trained on or dropped so far: what the run has cost in "
            "sampling, without responses that were lost with a worker",
            "",
            "last",
        ),
        Metric("progress/prompts_trained", "number of prompts trained on so far", "prompts", "last"),
        Metric(
            "progress/prompts_dropped",
            "number of prompts that dynamic sampling has dropped so far",
            "prompts",
            "last",
        ),
    ),
    (
        Chart("rollout workers", ("fleet/workers", "fleet/healthy_workers"), counted=True),
        Chart("worker restarts", ("fleet/restarts",), counted=True),
        Chart("prompts", ("progress/prompts_trained", "progress/prompts_dropped"), counted=True),
        Chart("responses", ("progress/responses_sampled",), counted=True),
    ),
)

SECTIONS = (
    _EVALUATION,
    _REWARD,
    SELECTION,
    BUDGET,
    RESCUE,
    _OBJECTIVE,
    _RESPONSE_LENGTH,
    _AGREEMENT,
    _THROUGHPUT,
    _TIME,
    _FLEET,
)
CHARTED = frozenset(key for section in SECTIONS for chart in section.charts for key in chart.keys)
METRICS = {metric.key: metric for section in SECTIONS for metric in section.metrics}
