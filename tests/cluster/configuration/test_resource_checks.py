"""Missing CPUs, GPUs and packages, and unwritable run directories, are reported."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.configuration.preflight import preflight
from cluster.configuration.resource_checks import check_resources
from tests.cluster.configuration.runs import only_problem, run_config


def test_more_cpus_than_the_machine_has(tmp_path: Path) -> None:
    problem = only_problem(run_config(tmp_path, rollout={"cpus_per_worker": 3}))
    assert "needs 4.5 CPUs" in problem.what
    assert "this machine has 4" in problem.what


tenths = st.integers(1, 9)


@example(workers=1, ranks=3, cpus_per_worker=7, cpus_per_rank=8)
@given(workers=st.integers(1, 9), ranks=st.integers(1, 9), cpus_per_worker=tenths, cpus_per_rank=tenths)
def test_exactly_as_many_cpus_as_the_machine_has_are_enough(
    workers: int, ranks: int, cpus_per_worker: int, cpus_per_rank: int
) -> None:
    """Fractions are added exactly: 3 × 0.1 + 0.7 is 1. The reward actors get the remaining CPUs."""
    left = 40 - workers * cpus_per_worker - ranks * cpus_per_rank
    sections: dict[str, Any] = {
        "rollout": {"workers": workers, "cpus_per_worker": cpus_per_worker / 10},
        "learner": {"ranks": ranks, "cpus_per_rank": cpus_per_rank / 10},
    }
    if left >= 0:
        assert (
            list(check_resources(run_config(Path(), **sections, reward={"cpus_per_worker": left / 10}))) == []
        )
    assert list(
        check_resources(run_config(Path(), **sections, reward={"cpus_per_worker": (max(left, 0) + 1) / 10}))
    )


def test_only_actors_that_will_run_are_counted(tmp_path: Path) -> None:
    """An evaluation has no learner, and an export has nothing but a learner."""
    config = run_config(tmp_path, rollout={"cpus_per_worker": 3}, learner={"ranks": 9, "gpus_per_rank": 1})
    assert preflight(config, ["rollout", "reward"]) == []
    cpus, gpus = check_resources(config, ["learner"])
    assert "needs 9 CPUs (learner.ranks × cpus_per_rank)" in cpus.what
    assert "needs 9 GPUs" in gpus.what
    config = run_config(tmp_path, rollout={"gpus_per_worker": 1})
    assert len(preflight(config, ["rollout", "reward"])) == 1
    assert list(check_resources(config, ["learner"])) == []


@pytest.mark.parametrize(
    ("visible", "gpus"), [("", 0), ("-1", 0), ("0", 1), ("0,1,2", 3), ("GPU-5ab,GPU-6cd", 2)]
)
def test_only_visible_gpus_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, gpus: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    learner = {"gpus_per_rank": 1, "cpus_per_rank": 0.1}
    if gpus:
        assert preflight(run_config(tmp_path, learner=learner | {"ranks": gpus})) == []
    problem = only_problem(run_config(tmp_path, learner=learner | {"ranks": gpus + 1}))
    assert f"needs {gpus + 1} GPUs, but this machine has {gpus}" in problem.what


@pytest.mark.parametrize("where", ["environment", "configuration"])
def test_the_resources_of_this_machine_do_not_limit_a_run_on_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "environment":
        monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    cluster = {"address": "head:6379"} if where == "configuration" else {}
    many = {"workers": 100, "gpus_per_worker": 8, "tensor_parallel_size": 8}
    assert preflight(run_config(tmp_path, rollout=many, cluster=cluster)) == []


def test_node_labels_need_a_cluster(tmp_path: Path) -> None:
    labels = {"rollout": {"pool": "spot"}}
    problem = only_problem(run_config(tmp_path, cluster={"node_labels": labels}))
    assert problem.where == "cluster.node_labels"
    assert preflight(run_config(tmp_path, cluster={"node_labels": labels, "address": "head:6379"})) == []


def test_the_run_directory_need_not_exist_yet(tmp_path: Path) -> None:
    assert preflight(run_config(tmp_path / "not" / "yet")) == []
    assert list(tmp_path.iterdir()) == [], "the check leaves nothing behind"


def below_a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file" / "runs"


def a_file_in_its_place(tmp_path: Path) -> Path:
    (tmp_path / "run").touch()
    return tmp_path


@pytest.mark.parametrize(
    "place",
    [
        below_a_file,
        a_file_in_its_place,
        lambda _: Path("/proc/runs"),
        lambda _: Path("~no-such-user/runs"),
    ],
    ids=["below a file", "a file", "/proc", "no such home"],
)
def test_a_run_directory_that_cannot_be_written(tmp_path: Path, place: Any) -> None:
    assert only_problem(run_config(place(tmp_path))).where == "directory"


def test_a_name_too_long_for_a_directory_is_refused(tmp_path: Path) -> None:
    try:
        config = run_config(tmp_path, name="n" * 300)
    except ValueError:
        return  # the schema refuses it
    assert len(preflight(config)) == 1


@pytest.mark.parametrize(("package", "where"), [("vllm", "environment"), ("wandb", "tracking.wandb")])
def test_a_missing_package_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, where: str
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else real(name, *rest)
    )
    problem = only_problem(run_config(tmp_path))
    assert problem.where == where
    assert package in problem.what


def test_wandb_is_not_needed_if_it_is_disabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else real(name, *rest)
    )
    assert preflight(run_config(tmp_path, tracking={"wandb": "disabled"})) == []
