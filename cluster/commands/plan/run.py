"""Run a plan: sample training prompts as an evaluation does, and write the predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.commands.evaluate.run import evaluate_in
from cluster.commands.plan.page import plan_page
from cluster.commands.plan.report import plan_report
from cluster.core.config import RunConfig
from cluster.core.files import write_atomically
from cluster.core.project import code_version
from cluster.core.text import json_text
from cluster.run_state.run_directory import RunDirectory
from cluster.run_state.run_lock import run_lock
from cluster.tracking import RunConsole
from cluster.training.batch import VerifierFailureError, refuse_failed_verdicts
from cluster.training.session import RUN_ERRORS

PLAN_ERRORS = (*RUN_ERRORS, VerifierFailureError)
"""The expected failures of a plan. Their message explains what happened, so no traceback is shown."""


def run_plan(config: RunConfig, page_file: Path | None, console: RunConsole) -> dict[str, Any]:
    """Sample and score the responses that `config.evaluation` requests to training prompts, and return the numbers of
    `plan_report`.

    The logs, the responses, the numbers and the page are written to `RunDirectory.plan`, and nothing else. With
    `page_file` the page is written there instead.

    Raises:
        PlacementError, FleetLostError, UnusablePromptError, RunInUseError, RunDirectoryLostError: as documented there.
        RefusedError: as in `evaluate_in`.
        VerifierFailureError: if the verifier failed on so many responses that a training would stop. The responses were
            written, but no predictions.
    """
    directory = RunDirectory(config.run_directory).plan
    with run_lock(directory.path, console.event) as lock:
        sample, _ = evaluate_in(directory, config, "train", console, whole_fleet=True)
        refuse_failed_verdicts(sample.groups, config.reward.max_error_fraction, "in the sample")
        report = plan_report(config, sample.groups, sample.seconds, sample.workers)
        lock.check()
        write_atomically(directory.plan_file, json_text(report, indent=2) + "\n")
        write_atomically(page_file or directory.plan_page, plan_page(report, code_version()))
    return report
