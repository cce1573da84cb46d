"""What an evaluation found: as numbers for a program, and as a table for a person. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from cluster.config import RunConfig
from cluster.contracts import ScoredGroup
from cluster.majority import mean_majority_at_k, worth_a_vote
from cluster.pass_at_k import mean_pass_at_k, powers_of_two
from cluster.step_metrics import evaluation_metrics
from cluster.tracking.formats import percent
from reward.task import Split


def evaluation_report(config: RunConfig, split: Split, groups: Sequence[ScoredGroup]) -> dict[str, Any]:
    """All that is to be said about the scored `groups`, fit for JSON. What cannot be estimated is None: a standard
    error from one prompt, pass@k where no prompt has k judged responses."""
    metrics = evaluation_metrics(groups)
    responses_per_prompt = len(groups[0].responses)
    pass_at_k = {k: mean_pass_at_k(groups, k) for k in powers_of_two(responses_per_prompt)}
    majority_at_k = {k: mean_majority_at_k(groups, k) for k in worth_a_vote(groups)}
    return {
        "model": config.model.source,
        "task": config.task.name,
        "split": split,
        "prompts": len(groups),
        "responses_per_prompt": responses_per_prompt,
        "temperature": config.rollout.temperature,
        "max_response_tokens": config.rollout.max_response_tokens,
        "seed": None if groups[0].prompt.sampling.seed is None else config.seed,
        "pass_at_1": _known(metrics["eval/pass_at_1"]),
        "pass_at_1_stderr": _known(metrics["eval/stderr"]),
        "pass_at_k": {str(k): _known(value) for k, value in pass_at_k.items()},
        "majority_at_k": {str(k): _known(value) for k, value in majority_at_k.items()},
        "cut_off_share": metrics["eval/truncated_share"],
        "response_tokens_mean": metrics["eval/response_tokens_mean"],
        "failed_verdicts": sum(len(group.verdicts) - group.judged for group in groups),
    }


def report_table(report: Mapping[str, Any]) -> Table:
    """The numbers of `evaluation_report` under the question that they answer."""
    stderr = report["pass_at_1_stderr"]
    error = "" if stderr is None else f" ± {100 * stderr:.1f}"
    passed = {
        f"pass@{k}": "?" if value is None else f"{100 * value:.1f}{error if k == '1' else ''} %"
        for k, value in report["pass_at_k"].items()
    }
    voted = {
        f"maj@{k}": "?" if value is None else f"{100 * value:.1f} %"
        for k, value in report["majority_at_k"].items()
    }
    rows = {
        "model": report["model"],
        "asked": f"{report['task']}, {report['split']}: {report['prompts']} prompts × "
        f"{report['responses_per_prompt']} responses",
        "sampled": f"temperature {report['temperature']:g}, "
        + ("no seed" if report["seed"] is None else f"seed {report['seed']}"),
        **passed,
        **voted,
        "mean length": f"{report['response_tokens_mean']:.1f} tokens",
        "cut off": f"{percent(report['cut_off_share'])} at {report['max_response_tokens']} tokens",
        "failed verdicts": str(report["failed_verdicts"]),
    }
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(Text(name, "cyan"), Text(value, "bold" if name in passed or name in voted else ""))
    return table


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
