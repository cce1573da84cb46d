"""A run directory that version 0.1.0 (d295cc4) wrote, with its former names, can be read and resumed."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from cluster.commands.report.page import write_report
from cluster.commands.report.runs import read_run
from cluster.configuration.loading import load_run_config
from cluster.core.renamed import METRICS, SETTINGS
from cluster.metrics.catalogue import METRICS as CATALOGUE
from cluster.run_state.checkpoints import CheckpointStore
from cluster.run_state.run_directory import RunDirectory
from cluster.tracking import RunConsole, Tracker, read_metrics

EARLIER = Path(__file__).with_name("earlier_run")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A copy of the directory, with the manifest of its checkpoint."""
    directory = RunDirectory(tmp_path / "runs" / "seven-0")
    shutil.copytree(EARLIER, directory.path)
    checkpoint = directory.checkpoints / "step-000002"
    content = (checkpoint / "progress.json").read_bytes()
    record = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "COMPLETE").write_text(json.dumps({"format": 2, "files": {"progress.json": record}}))
    return directory


def test_the_fixture_has_the_former_names() -> None:
    metrics = (EARLIER / "metrics.jsonl").read_text()
    absent = {
        *(
            "objective/importance_capped_share",
            "objective/gradient_share_positive",
        ),  # of options that are off
        "reward/timeout_fraction",  # of a later version
    }
    assert {key for key in METRICS if f'"{key}"' not in metrics} == absent
    config = (EARLIER / "config.yaml").read_text()
    names = {path.rpartition(".")[2] for path in SETTINGS if not path.startswith("task.")}
    assert all(f"{name}:" in config for name in names)


def test_commands_that_take_settings_of_a_run_read_its_former_names(run: RunDirectory) -> None:
    loaded = load_run_config(run.config_file, ["tracking.wandb_project=other"])
    assert not loaded.problems
    assert loaded.config.tracking.wandb_project == "other"
    assert loaded.config.objective.kl_coefficient == 0.01


def test_its_settings_have_their_present_names_and_their_values(run: RunDirectory) -> None:
    config = run.read_config()
    assert config.rollout.tensor_parallel_size == 2
    assert config.objective.kl_coefficient == 0.01
    assert config.task.options["eval_fraction"] == 0.2
    assert run.differences(config) == []
    run.write_config(config)
    assert run.read_config() == config


def test_its_metrics_have_their_present_keys(run: RunDirectory) -> None:
    rows = list(read_metrics(run.metrics_file))
    assert {key for row in rows for key in row} - {"step", "time", "prompts", "dropped"} <= CATALOGUE.keys()
    assert rows[1]["reward/correct_fraction"] == 0.095703125
    assert rows[2]["dropped"] == {"all incorrect": ["train/0/7"], "no verdict": ["train/0/8"]}


def test_its_checkpoint_counts(run: RunDirectory) -> None:
    checkpoint = CheckpointStore(run.checkpoints, keep=2).newest_intact(pytest.fail)
    assert checkpoint is not None
    assert checkpoint.progress.step == 2
    assert checkpoint.progress.in_flight == ("train/0/9",)
    assert checkpoint.progress.dropped_prompts == {"all incorrect": 1, "no verdict": 1}


def test_a_resumed_run_appends_to_its_metrics_and_shows_what_came_before(run: RunDirectory) -> None:
    config = run.read_config().model_copy(update={"directory": run.path.parent})
    config = config.model_copy(update={"tracking": config.tracking.model_copy(update={"wandb": "disabled"})})
    screen = io.StringIO()
    with RunConsole("seven-0", 200, console=Console(file=screen, width=120)) as console:
        with Tracker(config, run, console, resume_step=1) as tracker:
            tracker.log(2, {"reward/mean": 0.5, "reward/correct_fraction": 0.5})
        assert len(console._view.rewards) == 2
    rows = list(read_metrics(run.metrics_file))
    assert [row["reward/correct_fraction"] for row in rows[1:]] == [0.095703125, 0.5]


def test_it_is_reported_on(run: RunDirectory) -> None:
    (transcript,) = read_run(run.path, "earlier").transcripts
    (group,) = transcript.groups
    assert (group["correct"], group["valid"]) == (1, 4)
    assert [response["outcome"] for response in group["responses"]].count("correct") == 1
    page, _ = write_report([run.path], None)
    assert "1 of 4 correct" in page.read_text(encoding="utf-8")
