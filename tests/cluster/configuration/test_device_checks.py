"""Every fault of a machine's driver and GPUs is one line, and a machine without faults has none."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.configuration import device_checks, devices, resource_checks
from cluster.configuration.device_checks import device_problems
from cluster.configuration.devices import Devices, Gpu, read_devices, select
from cluster.configuration.preflight import preflight
from cluster.core.config import RunConfig
from tests import PROJECT
from tests.cluster.configuration.runs import run_config


def gpu(index: int = 0, **changes: Any) -> Gpu:
    return replace(Gpu(index, f"GPU-{index:04d}", "H100", 80.0, 79.5, (9, 0)), **changes)


SLICED = gpu(
    0, sliced=True, slices=tuple(gpu(0, uuid=f"MIG-{name}", memory_gib=19.5, free_gib=19.0) for name in "ab")
)
SOUND = Devices("580.95.05", (13, 0), (gpu(0), gpu(1)))


def on_gpus(rollout: dict[str, Any] | None = None, **learner: Any) -> RunConfig:
    return run_config(
        Path(),
        model={"dtype": "bfloat16"},
        rollout={"gpus_per_worker": 1} | (rollout or {}),
        learner={"gpus_per_rank": 1} | learner,
    )


@pytest.mark.parametrize("variable", [None, "0,1", "1,0", "GPU-0001", "0,-1,7", "1,,0"])
def test_a_machine_without_faults_has_no_problems(variable: str | None) -> None:
    assert list(device_problems(SOUND, variable, on_gpus())) == []


@pytest.mark.parametrize(
    ("found", "variable", "said"),
    [
        (Devices(error="Driver/library version mismatch"), None, "does not answer (Driver/library"),
        (replace(SOUND, driver="535.161", cuda=(12, 2)), None, "535.161 supports CUDA 12.2"),
        (replace(SOUND, driver="570.1", cuda=(12, 8)), None, "need 13.0; install driver 580"),
        (replace(SOUND, gpus=(gpu(capability=(7, 0), name="V100"),)), None, "need 7.5"),
        (replace(SOUND, gpus=(gpu(capability=(7, 5), name="T4"),)), None, "model.dtype: GPU 0 (T4)"),
        (SOUND, "0,7", "there is no GPU 7"),
        (SOUND, "0,0", "GPU 0 is named twice"),
        (SOUND, "GPU-0", "is the name of several GPUs"),
        (replace(SOUND, gpus=(gpu(0), gpu(1, sliced=True))), None, "GPU 1 is divided into MIG slices"),
        (replace(SOUND, gpus=(SLICED,)), "MIG-a,MIG-b", "one slice at most"),
        (replace(SOUND, gpus=(gpu(1), SLICED)), "1,MIG-a", "one slice at most"),
        (SOUND, "MIG-a", "there is no MIG slice MIG-a"),
        (replace(SOUND, gpus=(SLICED,)), "MIG-c", "there is no MIG slice MIG-c"),
        (replace(SOUND, gpus=(SLICED,)), "MIG-a,MIG-a", "MIG slice MIG-a is named twice"),
        (
            replace(SOUND, gpus=(gpu(0, sliced=True, memory_gib=0.0, free_gib=0.0),)),
            None,
            "divided into MIG slices",
        ),
        (replace(SOUND, gpus=(gpu(0), gpu(1, free_gib=20.0, processes=(4711,)))), None, "by processes 4711"),
        (replace(SOUND, gpus=(gpu(0, free_gib=20.0),)), None, "by another container: 20.0 of its 80.0"),
    ],
)
def test_one_fault_is_one_line(found: Devices, variable: str | None, said: str) -> None:
    (problem,) = device_problems(found, variable, on_gpus())
    assert said in str(problem)
    assert problem.fix
    assert "\n" not in str(problem)


def test_a_slice_holds_a_run_without_links() -> None:
    """NCCL does not connect MIG slices, so such a run has one rank, engines of one process, and no broadcast."""
    alone = {"gpus_per_worker": 0.5, "sleep_while_learning": True}
    sliced = replace(SOUND, gpus=(SLICED,))
    assert list(device_problems(sliced, "MIG-a", on_gpus(alone, gpus_per_rank=0.5))) == []
    for config in (on_gpus(ranks=2), on_gpus({"weight_transport": "broadcast"})):
        (problem,) = device_problems(sliced, "MIG-a", config)
        assert "NCCL does not connect slices" in problem.what


@given(free=st.floats(0.0, 1.0), utilization=st.floats(0.05, 1.0))
def test_an_engine_finds_its_memory_free(free: float, utilization: float) -> None:
    """An engine does not start if less than its part of the memory is free."""
    found = replace(SOUND, gpus=(gpu(0, memory_gib=80.0, free_gib=80.0 * free),))
    problems = list(device_problems(found, None, on_gpus({"gpu_memory_utilization": utilization})))
    if not problems:
        assert free >= utilization - 1e-9
        assert free >= 0.9 - 1e-9


@given(
    count=st.integers(0, 8),
    entries=st.lists(st.one_of(st.integers(-1, 9), st.sampled_from([""])), max_size=5),
)
def test_the_visible_gpus_are_those_before_the_first_invalid_entry(
    count: int, entries: list[int | str]
) -> None:
    found = select(
        Devices(gpus=tuple(gpu(index) for index in range(count))), ",".join(map(str, entries)) or ""
    )
    expected: list[int] = []
    for entry in entries:
        if not isinstance(entry, int) or not 0 <= entry < count or entry in expected:
            break
        expected.append(entry)
    assert [one.index for one in found.gpus] == expected


def test_the_lock_has_the_cuda_version_that_is_checked() -> None:
    lock = (PROJECT / "requirements/gpu.txt").read_text()
    major, minor = re.findall(r"^cuda-toolkit==(\d+)\.(\d+)", lock, flags=re.M)[0]
    assert (int(major), int(minor)) == device_checks.CUDA
    assert "nvidia-ml-py==" in lock, "read_devices needs it"


@pytest.mark.parametrize(
    ("platform", "gpus", "where"),
    [
        ("gpu", 0, ["rollout.gpus_per_worker", "learner.gpus_per_rank"]),
        ("cpu", 1, ["rollout.gpus_per_worker", "learner.gpus_per_rank"]),
        ("gpu", 1, []),
        ("cpu", 0, []),
        (None, 1, []),
    ],
)
def test_the_installed_packages_fit_the_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str | None, gpus: int, where: list[str]
) -> None:
    monkeypatch.setattr(resource_checks, "installed_platform", lambda: platform)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    rollout, learner = {"gpus_per_worker": gpus}, {"gpus_per_rank": gpus}
    config = run_config(tmp_path, rollout=rollout, learner=learner)
    assert [problem.where for problem in preflight(config)] == where
    assert preflight(config, ["reward"]) == []
    on_a_cluster = run_config(tmp_path, rollout=rollout, learner=learner, cluster={"address": "head:6379"})
    assert preflight(on_a_cluster) == [], "its nodes have environments of their own, which doctor examines"


def test_too_few_gpus_name_the_variable_that_hides_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource_checks, "read_devices", lambda: SOUND)
    config = run_config(tmp_path, rollout={"gpus_per_worker": 1}, learner={"gpus_per_rank": 1})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert preflight(config) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    (problem,) = preflight(config)
    assert "needs 2 GPUs, but this machine has 1 visible (CUDA_VISIBLE_DEVICES=1)" in problem.what


@pytest.mark.parametrize(
    ("found", "variable"),
    [(Devices(error="no answer"), None), (SOUND, "abc"), (SOUND, "0,0"), (SOUND, "MIG-a")],
)
def test_one_mistake_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: Devices, variable: str | None
) -> None:
    """The number of GPUs that remains is its consequence."""
    monkeypatch.setattr(resource_checks, "read_devices", lambda: found)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    config = run_config(tmp_path, rollout={"gpus_per_worker": 1}, learner={"gpus_per_rank": 1})
    (problem,) = preflight(config)
    assert problem.where == "environment"


def test_a_machine_without_a_driver_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(resource_checks, "_gpus", lambda devices: 0)
    (problem,) = preflight(run_config(tmp_path, learner={"gpus_per_rank": 1}))
    assert "no NVIDIA driver shows any" in problem.what


def test_no_actor_is_divided_among_several_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.6 + 0.6 + 0.5 is less than 2, but 0.5 is left on neither GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    learner = {"ranks": 2, "gpus_per_rank": 0.6}
    for engine, fits in ((0.4, True), (0.5, False)):
        rollout = {"gpus_per_worker": engine, "gpu_memory_utilization": 0.4}
        problems = preflight(run_config(tmp_path, rollout=rollout, learner=learner))
        assert [problem.where for problem in problems] == ([] if fits else ["cluster"])


class FakeNvml(ModuleType):
    """A management library with one GPU, or one that fails with an error code."""

    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_NO_PERMISSION = 4
    NVML_ERROR_NOT_FOUND = 6
    NVML_ERROR_DRIVER_NOT_LOADED = 9
    NVML_ERROR_LIBRARY_NOT_FOUND = 12
    NVML_DEVICE_MIG_ENABLE = 1

    class NVMLError(Exception):
        def __init__(self, value: int) -> None:
            super().__init__(f"error {value}")
            self.value = value

    def __init__(self, fails: int = 0, divided: bool = False, restricted: bool = False) -> None:
        super().__init__("pynvml")
        self.fails, self.divided, self.restricted, self.open = fails, divided, restricted, 0

    def nvmlInit(self) -> None:
        if self.fails:
            raise self.NVMLError(self.fails)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetMigMode(self, handle: int) -> tuple[int, int]:
        if not self.divided:
            raise self.NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return 1, 1

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: int, number: int) -> int:
        if number != 2:
            raise self.NVMLError(self.NVML_ERROR_NOT_FOUND)
        return 100

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        if self.restricted and handle < 100:
            raise self.NVMLError(self.NVML_ERROR_NO_PERMISSION)
        return SimpleNamespace(total=2**34, free=2**33)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:
        if self.restricted:
            raise self.NVMLError(self.NVML_ERROR_NO_PERMISSION)
        return [SimpleNamespace(pid=5)]

    nvmlSystemGetCudaDriverVersion_v2 = staticmethod(lambda: 13020)
    nvmlSystemGetDriverVersion = staticmethod(lambda: "590.1")
    nvmlDeviceGetCount = staticmethod(lambda: 1)
    nvmlDeviceGetHandleByIndex = staticmethod(lambda index: index)
    nvmlDeviceGetMaxMigDeviceCount = staticmethod(lambda handle: 7)
    nvmlDeviceGetUUID = staticmethod(lambda handle: "GPU-x" if handle < 100 else "MIG-x")
    nvmlDeviceGetName = staticmethod(lambda handle: "L4")
    nvmlDeviceGetCudaComputeCapability = staticmethod(lambda handle: (8, 9))


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("divided", [False, True])
def test_the_library_is_read(monkeypatch: pytest.MonkeyPatch, divided: bool, restricted: bool) -> None:
    """A library in place of NVIDIA's: this shows the calls, not the values of a real driver. A container that has one
    slice of a GPU may not ask for the memory of the whole GPU, and a container may not see processes."""
    nvml = FakeNvml(divided=divided, restricted=restricted and divided)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    hidden = restricted and divided
    pids = () if hidden else (5,)
    one = Gpu(0, "MIG-x", "L4", 16.0, 8.0, (8, 9), processes=pids)
    sizes = (0.0, 0.0) if hidden else (16.0, 8.0)
    expected = Gpu(0, "GPU-x", "L4", *sizes, (8, 9), divided, (one,) if divided else (), pids)
    assert read_devices() == Devices("590.1", (13, 2), (expected,))
    assert nvml.open == 0


@pytest.mark.parametrize(("code", "absent"), [(12, True), (9, True), (18, False)])
def test_a_machine_without_a_driver_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, code: int, absent: bool
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(fails=code))
    assert read_devices() == (None if absent else Devices(error="error 18"))


def test_the_library_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert devices.read_devices() is None
