"""The run directory: written files read back equal, and a crash never leaves a partial file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cluster.core.config import RunConfig
from cluster.run_state.run_directory import RunDirectory, differences

NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,12}\Z") | st.sampled_from(
    ["1e5", "2E-3", "0x10", "010", "yes", "null", "1_0", "12.5", "0o7"]
)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "runs" / "first")
    directory.create()
    return directory


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=NAMES,
    option=st.text(max_size=20),
    tags=st.lists(NAMES, max_size=3),
    learning_rate=st.floats(1e-12, 1, exclude_min=True),
    cap=st.none() | st.floats(1, 10),
)
@example(name="1e5", option="\x85 α\u2028\t\x00", tags=["0o7"], learning_rate=1e-6, cap=None)
def test_a_written_config_reads_back_equal(
    run: RunDirectory, name: str, option: str, tags: list[str], learning_rate: float, cap: float | None
) -> None:
    config = RunConfig.model_validate(
        {
            "name": name,
            "directory": "~/runs",
            "task": {"options": {"text": option, "nested": {"list": [1, option]}}},
            "objective": {"importance_cap": cap},
            "learner": {"learning_rate": learning_rate},
            "tracking": {"wandb_tags": tags},
        }
    )
    run.write_config(config)
    assert run.read_config() == config
    assert differences(run.read_config(), config) == []


@given(name=NAMES)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_omegaconf_reads_the_written_config_too(run: RunDirectory, name: str) -> None:
    """`launch.py train <run>/config.yaml` reads with OmegaConf, which accepts more forms of numbers than PyYAML."""
    config = RunConfig(name=name)
    run.write_config(config)
    assert RunConfig.model_validate(OmegaConf.to_container(OmegaConf.load(run.config_file))) == config


def test_differences_name_the_field_and_both_values(run: RunDirectory) -> None:
    old = RunConfig.model_validate({"learner": {"learning_rate": 2e-4}, "task": {"options": {"numbers": 3}}})
    new = RunConfig.model_validate(
        {
            "learner": {"learning_rate": 3e-4},
            "task": {"options": {"target": 9}},
            "tracking": {"wandb": "disabled"},
        }
    )
    run.write_config(old)
    assert run.differences(new) == [
        "task.options.numbers: 3 -> (absent)",
        "learner.learning_rate: 0.0002 -> 0.0003",
        "tracking.wandb: auto -> disabled",
        "task.options.target: (absent) -> 9",
    ]
    assert run.differences(old) == []


def test_a_broken_config_is_refused_with_its_path(run: RunDirectory) -> None:
    run.config_file.write_text("a: [1", encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.yaml is not YAML"):
        run.read_config()
    run.config_file.write_text("stepps: 3", encoding="utf-8")
    with pytest.raises(ValueError, match="stepps"):
        run.read_config()


def finished(run: RunDirectory) -> bool:
    return run.is_finished  # in a function, because mypy would assume that it cannot change


def test_only_a_run_with_a_summary_is_finished(run: RunDirectory) -> None:
    assert not finished(run)
    with pytest.raises(FileNotFoundError):
        run.read_summary()
    gap = {"gap": math.nan, "at": run.path}
    run.write_summary({"pass_at_1": np.float32(0.5), "steps": np.int64(3), "nested": gap})
    assert finished(run)
    assert run.read_summary() == {"pass_at_1": 0.5, "steps": 3, "nested": {"gap": None, "at": str(run.path)}}
    run.remove_summary()
    assert not finished(run)


def test_a_write_that_fails_leaves_the_old_summary(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.write_summary({"steps": 1})

    def full(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run.write_summary({"steps": 2})
    assert json.loads(run.summary_file.read_text(encoding="utf-8")) == {"steps": 1}


def test_create_keeps_existing_entries(run: RunDirectory) -> None:
    (run.checkpoints / "kept").touch()
    run.create()
    assert (run.checkpoints / "kept").exists()
    assert not run.final_model.exists()  # its presence would mean that the model was saved


def test_the_readme_explains_every_entry(run: RunDirectory) -> None:
    run.write_config(RunConfig())
    run.write_summary({})
    run.metrics_file.touch()
    run.superseded_metrics_file.touch()
    run.final_model.mkdir()
    text = run.readme_file.read_text(encoding="utf-8")
    for entry in run.path.iterdir():
        if entry != run.readme_file:
            assert f"`{entry.name}{'/' if entry.is_dir() else ''}`" in text
