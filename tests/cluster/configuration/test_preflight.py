"""All problems of a run are found together, before anything starts, and a valid run has none."""

from __future__ import annotations

from pathlib import Path

from cluster.configuration.machine_checks import with_chosen_defaults
from cluster.configuration.preflight import preflight
from cluster.core.config import RunConfig
from tests.cluster.configuration.runs import run_config


def test_a_valid_run_has_no_problems(tmp_path: Path) -> None:
    assert preflight(run_config(tmp_path)) == []


def test_the_defaults_have_no_problems() -> None:
    """Whether this machine has the CPUs for them is another question."""
    config, choices = with_chosen_defaults(RunConfig())
    assert [choice.setting for choice in choices] == [
        "model.max_context_tokens",
        "rollout.max_response_tokens",
    ]
    assert preflight(config, roles=()) == preflight(RunConfig(), roles=()) == []
    assert {problem.where for problem in preflight(RunConfig())} <= {"cluster"}


def test_a_context_that_is_set_is_kept(tmp_path: Path) -> None:
    for model in ({"max_context_tokens": 128}, {"max_context_tokens": 1024}):
        config = run_config(tmp_path, model=model)
        assert with_chosen_defaults(config) == (config, ())


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
