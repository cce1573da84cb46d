"""Comparisons: their plan, the runs that are started or skipped, and the reported results."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from cluster.commands.compare.plan import Comparison, load_comparison, same_gradient, settings_changed
from cluster.commands.compare.run import OtherSettingsError, run_comparison
from cluster.commands.options import checked_run
from cluster.metrics.run_measures import HEADLINES
from cluster.run_state.lock_file import LockFile
from cluster.run_state.run_lock import lock_paths
from launch import app
from tests import PROJECT
from tests.fake_training import train
from tests.waiting import until

TRAINING = [sys.executable, "-m", "tests.fake_training"]
SMALL = {
    "steps": 4,
    "model": {"max_context_tokens": 128},
    "rollout": {"workers": 1, "prompts_per_step": 4, "max_response_tokens": 64, "cpus_per_worker": 0.3},
    "learner": {"cpus_per_rank": 0.3},
    "reward": {"cpus_per_worker": 0.3},
}


def comparison_file(folder: Path, **changes: Any) -> Path:
    (folder / "base.yaml").write_text(yaml.safe_dump(SMALL))
    values = {
        "name": "rates",
        "directory": str(folder / "runs"),
        "base": "base.yaml",
        "seeds": [3, 5],
        "variants": {"low": ["learner.learning_rate=0.1"], "high": ["learner.learning_rate=0.3"]},
    }
    file = folder / "comparison.yaml"
    file.write_text(yaml.safe_dump(values | changes, sort_keys=False))
    return file


def planned(folder: Path, *overrides: str, **changes: Any) -> Comparison:
    comparison, problems = load_comparison(comparison_file(folder, **changes), overrides)
    assert not problems, problems
    return comparison


def run(comparison: Comparison, side_by_side: int = 1, **options: Any) -> tuple[bool, str]:
    """Run a comparison. Return whether all runs are finished, and the output."""
    screen = io.StringIO()
    complete = run_comparison(comparison, TRAINING, side_by_side, Console(file=screen, width=120), **options)
    return complete, screen.getvalue()


def finish(comparison: Comparison) -> None:
    """Write the files of all runs as if they had been trained."""
    for planned_run in comparison.runs:
        train(planned_run.config)


def starts(comparison: Comparison) -> list[str]:
    return (comparison.directory / "starts").read_text().split()


# --- The plan


def test_each_variant_is_planned_with_each_seed_in_the_order_of_seeds(tmp_path: Path) -> None:
    comparison = planned(tmp_path, "steps=2")
    assert [run.name for run in comparison.runs] == [
        "rates.low.seed3",
        "rates.high.seed3",
        "rates.low.seed5",
        "rates.high.seed5",
    ]
    assert [run.config.learner.learning_rate for run in comparison.runs] == [0.1, 0.3, 0.1, 0.3]
    assert {run.config.steps for run in comparison.runs} == {2}
    assert {run.config.tracking.wandb_group for run in comparison.runs} == {"rates"}
    assert comparison.baseline == "low"


@pytest.mark.parametrize(
    "file", sorted((PROJECT / "configs").glob("compare_*.yaml")), ids=lambda file: file.stem
)
def test_shipped_comparisons_are_valid(file: Path) -> None:
    _, problems = load_comparison(file, ["rollout.cpus_per_worker=0.1", "learner.cpus_per_rank=0.1"])
    assert problems == []


@pytest.mark.parametrize(
    ("changes", "overrides", "said"),
    [
        ({"variants": {"low": []}}, [], "variants: expected two or more, got 1"),
        ({"baseline": "none"}, [], "baseline: no such variant: none"),
        ({"seeds": [1, 1]}, [], "seeds: a seed is repeated"),
        ({"seeds": []}, [], "seeds: expected at least 1 entry, got []"),
        ({"seed": [1]}, [], "seed: there is no such setting; did you mean seeds?"),
        ({"overrides": ["seed=3"]}, [], "overrides: seed: the comparison sets it for each run"),
        ({}, ["name=x"], "the command line: name: the comparison sets it for each run"),
        ({}, ["learner.learning_rate=1"], "learner.learning_rate: the variants set it differently"),
        ({}, ["learner.learning_rat=1"], "variant low: learner.learning_rat: there is no such setting"),
        ({"base": "nowhere.yaml"}, [], "nowhere.yaml: there is no such file"),
        (
            {"variants": {"a": ["steps=3"], "b": ["task.name=math"]}},
            [],
            "variant b: task.name: the variants would be measured on different problems",
        ),
        (
            {"variants": {"a": [], "b": ["tracking.wandb=disabled"]}},
            [],
            "variant b: its settings equal those of a",
        ),
        ({"variants": {"a": [], "../b": ["steps=3"]}}, [], "variants"),
        ({"variants": {"a": [], "b": ["rollout.workers=99"]}}, [], "variant b: cluster: the run needs"),
    ],
)
def test_mistakes_are_found_before_anything_starts(
    tmp_path: Path, changes: Mapping[str, Any], overrides: list[str], said: str
) -> None:
    _, problems = load_comparison(comparison_file(tmp_path, **changes), overrides)
    assert any(said in str(problem) for problem in problems), problems


def test_objectives_with_equal_gradients_are_named(tmp_path: Path) -> None:
    variants = {name: [f"objective.name={name}"] for name in ("grpo", "gspo", "sapo", "a_hpo")}
    assert same_gradient(planned(tmp_path, variants=variants)) == [["grpo", "gspo", "sapo"]]
    assert same_gradient(planned(tmp_path, "learner.mini_batches=2", variants=variants)) == []
    assert same_gradient(planned(tmp_path, "objective.importance_cap=2", variants=variants)) == []


def test_each_group_of_equal_gradients_is_named_and_other_settings_make_a_difference(tmp_path: Path) -> None:
    """The bound of dual clip does not act at ratio 1, and HPO with α = 1 is a token mean."""
    variants = {
        "a_hpo": ["objective.name=a_hpo"],
        "a_hpo-bounded": ["objective.name=a_hpo_dual_clip"],
        "hpo-1": ["objective.name=hpo"],
        "hpo-0.6": ["objective.name=hpo", "objective.alpha=0.6"],
        "hpo-0.6-bounded": ["objective.name=hpo_dual_clip", "objective.alpha=0.6"],
        "dapo": ["objective.name=dapo"],
        "dapo-faster": ["objective.name=dapo", "learner.learning_rate=0.3"],
        "maxrl": ["objective.name=maxrl"],
        "dapo-mean": ["objective.name=dapo", "objective.advantage_scaling=mean"],
    }
    assert same_gradient(planned(tmp_path, variants=variants)) == [
        ["a_hpo", "a_hpo-bounded"],
        ["hpo-1", "dapo"],
        ["hpo-0.6", "hpo-0.6-bounded"],
        ["maxrl", "dapo-mean"],
    ]


# --- Running


def test_results_are_written_and_shown(tmp_path: Path) -> None:
    comparison = planned(tmp_path)
    finish(comparison)
    complete, screen = run(comparison)
    assert complete
    assert "tables and plots" in screen
    found = json.loads((comparison.directory / "comparison.json").read_text())
    final = found["measures"]["pass_at_1_final"]
    assert final["low"]["by_seed"] == pytest.approx({"3": 0.26, "5": 0.34})
    assert final["low"]["estimate"]["mean"] == pytest.approx(0.30)
    assert final["low"]["difference"] is None
    assert final["high"]["difference"] == pytest.approx(
        {"mean": 0.2, "half_width": 0.0, "count": 2}, abs=1e-9
    )
    assert found["measures"]["reward_area"]["low"]["estimate"]["mean"] == pytest.approx(0.35)
    assert found["measures"]["reward_early"]["high"]["estimate"]["mean"] == pytest.approx(0.4)
    page = (comparison.directory / "comparison.md").read_text()
    details = "| variant | reward final | α | entropy final | clipped, % | tokens final |"
    assert details in page
    assert "| high | 0.700 ± 0.000 | 0.25 ± 0.00 | 0.125 ± 0.000 | 3.00 ± 0.00 | 5.0 ± 0.0 |" in page
    assert f"{len(HEADLINES)} such intervals" in page
    assert "| high | +20.0 ± 0.0 * |" in page
    assert "python launch.py train" in page
    for plot in ("pass_at_1.png", "reward.png", "length.png", "differences.png"):
        assert (comparison.directory / plot).read_bytes().startswith(b"\x89PNG")
        assert f"({plot})" in page


def test_finished_runs_are_skipped_and_interrupted_or_new_runs_are_started(tmp_path: Path) -> None:
    finish(planned(tmp_path))
    more = planned(tmp_path, seeds=[3, 5, 8])
    more.runs[1].config.run_directory.joinpath("summary.json").unlink()
    complete, screen = run(more, 2)
    assert complete
    assert "6 runs, 3 of them already finished" in screen
    assert sorted(starts(more)[4:]) == ["rates.high.seed3", "rates.high.seed8", "rates.low.seed8"]


def test_runs_with_other_settings_are_not_mixed(tmp_path: Path) -> None:
    finish(planned(tmp_path))
    with pytest.raises(OtherSettingsError, match=r"steps: 4 -> 5.*Restore them"):
        run(planned(tmp_path, "steps=5"))
    assert run(planned(tmp_path, "tracking.wandb=disabled"))[0]


def test_runs_on_gpus_are_planned_with_the_settings_for_their_devices(tmp_path: Path) -> None:
    """Each training chooses them. Otherwise a comparison would refuse to continue its own runs, and would compare the
    memory of float32 with the GPUs'."""
    on_gpus = ["cluster.address=head:6379", "rollout.gpus_per_worker=1", "learner.gpus_per_rank=1"]
    arguments = planned(tmp_path, *on_gpus).runs[0].arguments
    trained = checked_run(Path(arguments[0]), list(arguments[1:])).config
    assert trained.model.dtype == "bfloat16"
    assert settings_changed(trained, planned(tmp_path, *on_gpus).runs[0].config) == []


def test_a_failed_run_does_not_affect_other_runs(tmp_path: Path) -> None:
    variants = {"bad": ["learner.learning_rate=13"], "good": ["learner.learning_rate=0.1"]}
    comparison = planned(tmp_path, variants=variants)
    complete, screen = run(comparison, 2)
    assert not complete
    assert "rates.good.seed5: finished step 4/4, reward 0.500, pass@1 0.340" in screen
    assert "rates.bad.seed3 failed: 12:00:00  stopped: the moon is in the wrong phase" in screen
    assert "Not finished and therefore not included: rates.bad.seed3, rates.bad.seed5." in screen
    found = json.loads((comparison.directory / "comparison.json").read_text())
    assert found["measures"]["pass_at_1_final"]["good"]["estimate"]["count"] == 2
    assert found["measures"]["pass_at_1_final"]["bad"]["estimate"]["mean"] is None


def test_the_table_alone_starts_no_run(tmp_path: Path) -> None:
    comparison = planned(tmp_path)
    complete, screen = run(comparison, only_table=True)
    assert not complete
    assert "Not finished" in screen
    assert not (comparison.directory / "starts").exists()


def test_the_table_alone_writes_nothing_beside_a_live_comparison(tmp_path: Path) -> None:
    """The live one writes its results; older ones must not replace them."""
    comparison = planned(tmp_path)
    comparison.directory.mkdir(parents=True)
    (path,) = lock_paths(comparison.directory)
    held = LockFile.take(path)
    try:
        complete, screen = run(comparison, only_table=True)
    finally:
        held.release()
    assert not complete
    assert "Not finished" in screen
    assert "nothing was written: " in screen
    assert "is in use by" in screen
    assert list(comparison.directory.iterdir()) == []


@pytest.mark.parametrize("signals", [["SIGTERM"], ["SIGHUP"], ["SIGINT", "SIGINT"]], ids="-".join)
def test_an_interrupted_comparison_interrupts_its_parallel_trainings(
    tmp_path: Path, signals: list[str]
) -> None:
    """It refuses the same command while it runs."""
    variants = {"a": ["learner.learning_rate=99"], "b": ["learner.learning_rate=99", "steps=5"]}
    file = comparison_file(tmp_path, variants=variants)
    script = f"""
import sys
from pathlib import Path
from rich.console import Console
from cluster.commands.compare.plan import load_comparison
from cluster.commands.compare.run import run_comparison
from cluster.runtime.signals import answer_signals
answer_signals()
run_comparison(load_comparison(Path({str(file)!r}))[0], {TRAINING!r}, 2, Console())
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    folder = tmp_path / "runs" / "rates"
    waiting = [folder / f"rates.{variant}.seed3" for variant in "ab"]
    until(lambda: all((directory / "waits").exists() for directory in waiting), "the trainings' start", 120)
    trainings = psutil.Process(process.pid).children()
    assert len(trainings) == 2
    result = CliRunner().invoke(app, ["compare", str(file)])
    assert result.exit_code == 2
    assert f"rates is in use by `-c` (process {process.pid} on" in result.stderr
    assert CliRunner().invoke(app, ["compare", str(file), "--only-table"]).exit_code == 0
    for number in signals:
        process.send_signal(signal.Signals[number])
    _, errors = process.communicate(timeout=120)
    assert (b"Terminated" if len(signals) == 1 else b"KeyboardInterrupt") in errors
    assert not any(training.is_running() for training in trainings)
    if len(signals) == 1:  # a second signal reaches trainings that are about to end
        assert all((directory / "interrupted").exists() for directory in waiting)
    assert not (folder / "rates.a.seed5").exists(), "two at a time, and none after it was interrupted"
    assert len((folder / "starts").read_text().split()) == 2
    assert not list(tmp_path.rglob("*.lock"))


def test_a_comparison_that_is_killed_takes_its_training_along(tmp_path: Path) -> None:
    variants = {"a": ["learner.learning_rate=99"], "b": ["learner.learning_rate=99", "steps=5"]}
    file = comparison_file(tmp_path, variants=variants)
    script = f"""
from pathlib import Path
from cluster.commands.compare.plan import load_comparison
from cluster.commands.compare.trials import run_trials, trials_of
run_trials(trials_of(load_comparison(Path({str(file)!r}))[0]), {TRAINING!r}, 1, print)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL)
    until((tmp_path / "runs" / "rates" / "rates.a.seed3" / "waits").exists, "the training's start", 120)
    (training,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    training.wait(30)


def test_the_command_prints_every_mistake(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["compare", str(comparison_file(tmp_path, baseline="none")), "name=x"])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 2


def test_the_command_shows_the_table(tmp_path: Path) -> None:
    file = comparison_file(tmp_path)
    result = CliRunner().invoke(app, ["compare", str(file), "--only-table"])
    assert result.exit_code == 0, result.output
    assert "difference from low, paired by seed" in result.output
