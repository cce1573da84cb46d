"""All problems of a run are found together, before anything starts, and a valid run has none."""

from __future__ import annotations

from pathlib import Path

from cluster.configuration.preflight import preflight
from tests.cluster.configuration.runs import run_config


def test_a_valid_run_has_no_problems(tmp_path: Path) -> None:
    assert preflight(run_config(tmp_path)) == []


def test_all_mistakes_are_found_together(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = run_config(
        tmp_path / "file" / "runs",
        model={"source": "no/where/at/all"},
        task={"options": {"numbrs": 3}},
        rollout={"workers": 9, "gpus_per_worker": 1},
        learner={"mini_batches": 3},
    )
    assert sorted(problem.where for problem in preflight(config)) == [
        "cluster",
        "cluster",
        "directory",
        "model.source",
        "rollout.prompts_per_step",
        "task.options.numbrs",
    ]
