"""The GPU check runs everywhere, ends everywhere, and says what failed.

All parts run on CPU at tiny sizes. This does not show what they find on a GPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from benchmarks.gpu_check import environment, link, memory, paths, runner
from benchmarks.gpu_check.findings import Findings, Outcome, Settings
from benchmarks.gpu_check.models import TINY, WIDE
from benchmarks.gpu_check.parts import PARTS, Part, chosen
from benchmarks.gpu_check.report import exit_code, write_reports
from benchmarks.gpu_check.runner import run_part, run_parts
from learner.model.policy import TokenBatch
from tests import PROJECT

IN_THIS_PROCESS = ("environment", "paths", "kernels", "memory", "copies")
"""The parts that may run beside other tests. The others start processes, or join a process group."""
UNMET = {link.NAMES_MEMBER}
"""The weight channel does not name the member that it misses yet."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(device="cpu", smoke=True, scratch=str(tmp_path))


def part(function: str, limit_s: float = 60.0, packages: tuple[str, ...] = ()) -> Part:
    return Part(
        function,
        f"a part that is {function}",
        f"tests.gpu_check_parts:{function}",
        packages,
        limit_s,
        "Ask us.",
    )


def failed(findings: Findings) -> set[str]:
    return {check.name for check in findings.checks if not check.holds}


def is_alive(process_id: int) -> bool:
    """Return False if the process has ended, also if its parent has not asked for its exit code."""
    try:
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --- Parts that fail.


def test_a_part_that_hangs_is_killed_with_its_children(settings: Settings, tmp_path: Path) -> None:
    outcome = run_part(part("hanging", limit_s=8.0), settings, tmp_path)
    assert outcome.verdict == "timed out"
    assert outcome.reason == "it was killed after 8 s during: waiting for a device"
    assert outcome.remedies == ["Ask us."]
    assert any("in hanging" in line for line in outcome.log_tail), "the log shows where it hung"
    assert not is_alive(outcome.figures["child"])
    assert exit_code([outcome]) == 1


def test_processes_that_a_part_leaves_are_killed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "GRACE_S", 0.1)
    outcome = run_part(part("leaving"), settings, tmp_path)
    assert not is_alive(outcome.figures["child"])
    assert outcome.verdict == "passed"
    assert "1 process(es)" in outcome.notes[0]


def test_a_part_whose_package_is_missing_is_not_run(settings: Settings, tmp_path: Path) -> None:
    outcome = run_part(part("raising", packages=("json", "no_such_package")), settings, tmp_path)
    assert (outcome.verdict, outcome.reason) == ("not run", "package no_such_package is not installed")


@pytest.mark.parametrize(
    ("function", "verdict", "reason", "remedies"),
    [
        ("sound", "passed", "", []),
        ("failing", "failed", "that holds", ["Turn it off."]),
        ("raising", "failed", "RuntimeError: the device is lost during: the second step", ["Ask us."]),
        (
            "dying",
            "failed",
            "its process ended with exit code 3 without a result during: the third step",
            ["Ask us."],
        ),
        ("obstructed", "not run", "there is one device only", []),
    ],
)
def test_verdicts_and_remedies(
    function: str, verdict: str, reason: str, remedies: list[str], settings: Settings, tmp_path: Path
) -> None:
    outcome = run_part(part(function), settings, tmp_path)
    assert (outcome.verdict, outcome.reason, list(outcome.remedies)) == (verdict, reason, remedies)


def test_every_part_runs_whatever_happened_to_the_one_before(settings: Settings, tmp_path: Path) -> None:
    outcomes = run_parts([part("dying"), part("failing"), part("sound")], settings, tmp_path)
    assert [outcome.verdict for outcome in outcomes] == ["failed", "failed", "passed"]
    assert exit_code(outcomes) == 1
    markdown, as_json = write_reports(outcomes, settings, tmp_path)
    assert "- failing: Turn it off." in markdown.read_text(encoding="utf-8").splitlines()
    found = json.loads(as_json.read_text(encoding="utf-8"))
    assert found["exit_code"] == 1
    assert [(each["name"], each["verdict"]) for each in found["parts"]] == [
        ("dying", "failed"),
        ("failing", "failed"),
        ("sound", "passed"),
    ]
    assert found["parts"][2]["figures"] == {"answer": 42}
    assert found["parts"][1]["checks"][1]["remedy"] == "Turn it off."


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        (["passed"], 0),
        (["passed", "not run"], 0),
        (["passed", "failed"], 1),
        (["passed", "timed out"], 1),
        (["not run"], 1),
    ],
)
def test_the_exit_code(verdicts: list[Any], code: int) -> None:
    outcomes = [Outcome("name", "", verdict, "", 0.0, 1.0, (), (), {}, (), "log") for verdict in verdicts]
    assert exit_code(outcomes) == code


def test_without_any_package_it_says_so(tmp_path: Path) -> None:
    """The command itself needs the standard library alone."""
    command = [sys.executable, "-S", "-m", "benchmarks.gpu_check", "--output", str(tmp_path)]
    process = subprocess.run(
        command, cwd=PROJECT, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert process.returncode == 1, process.stderr
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["parts"]
    assert [each["verdict"] for each in found] == ["not run"] * len(PARTS)
    assert all(each["reason"].startswith("package torch is not installed") for each in found)


def test_unknown_parts_are_refused() -> None:
    assert [each.name for each in chosen(("engine", "link"))] == ["link", "engine"]
    with pytest.raises(ValueError, match="no part is named links; the parts are environment, link"):
        chosen(("links",))


# --- The parts, at tiny sizes.


def part_function(name: str) -> Callable[[Settings, Findings], None]:
    (one,) = chosen((name,))
    module, _, function = one.function.partition(":")
    found: Callable[[Settings, Findings], None] = getattr(import_module(module), function)
    return found


@pytest.mark.parametrize("name", IN_THIS_PROCESS)
def test_a_part_passes_on_cpu(name: str, settings: Settings) -> None:
    findings = Findings()
    part_function(name)(settings, findings)
    assert not failed(findings)
    assert findings.figures


@pytest.mark.timeout(1000)
@pytest.mark.parametrize(
    "name", ["sharing", *(pytest.param(name, marks=pytest.mark.slow) for name in ("link", "steps"))]
)
def test_a_part_with_processes_passes_on_cpu(name: str, settings: Settings, tmp_path: Path) -> None:
    """The limit is raised: a busy machine is no failure here."""
    (one,) = chosen((name,))
    outcome = run_part(replace(one, limit_s=900.0), settings, tmp_path)
    unmet = {check.name for check in outcome.checks if not check.holds}
    assert unmet <= UNMET, (outcome.reason, outcome.log_tail)
    assert len(outcome.checks) > len(unmet)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_command_runs_all_parts_with_an_engine(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu_check",
        "--device",
        "cpu",
        "--smoke",
        "--output",
        tmp_path,
    ]
    process = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert process.returncode == found["exit_code"]
    for each in found["parts"]:
        assert {check["name"] for check in each["checks"] if not check["holds"]} <= UNMET, each
        assert each["verdict"] == "passed" or (each["name"], each["reason"]) == ("link", *UNMET)


# --- The parts can fail.


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_fails_with_a_remedy(settings: Settings, tmp_path: Path) -> None:
    findings = Findings()
    environment.check_environment(replace(settings, device="cuda"), findings)
    (fault,) = [check for check in findings.checks if not check.holds]
    assert fault.name == "torch sees a GPU"
    assert "make setup PLATFORM=gpu" in fault.remedy
    outcome = run_part(chosen(("copies",))[0], replace(settings, device="cuda"), tmp_path)
    assert (outcome.verdict, outcome.reason) == (
        "not run",
        "torch sees no GPU; the part environment says why",
    )


@pytest.mark.parametrize(
    ("driver", "torch_cuda", "faults"),
    [
        ((13, 0), "13.0", set()),
        ((13, 1), "12.8", set()),
        ((12, 9), "13.0", {"the driver supports torch's CUDA"}),
        (None, "13.0", set()),  # torch sees no GPU then
    ],
)
def test_a_driver_that_is_too_old_is_found(
    driver: tuple[int, int] | None, torch_cuda: str, faults: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "driver_cuda", lambda: driver)
    environment._driver(findings := Findings(), torch_cuda)
    assert failed(findings) == faults


def test_a_missing_driver_has_no_version() -> None:
    assert environment.driver_cuda("libno_such_driver.so.1") is None


def test_responses_that_see_each_other_are_found(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def causal(micro_batch: Any, device: torch.device) -> TokenBatch:
        batch = TokenBatch.from_micro_batch(micro_batch, device)
        if batch.attention_mask is None:
            return batch
        width = batch.input_ids_SL.shape[1]
        return replace(batch, attention_mask=torch.ones(1, 1, width, width, dtype=torch.bool).tril())

    monkeypatch.setattr(paths, "TokenBatch", SimpleNamespace(from_micro_batch=causal))
    monkeypatch.setattr(paths, "shared_ways", lambda *_: {"causal": nullcontext()})
    findings = Findings()
    paths.check_paths(settings, findings)
    assert failed(findings) == {
        f"{law} ({dtype}, causal)"
        for law in (
            "shared prompts give the loss and gradients of every response alone",
            "responses do not see each other",
        )
        for dtype in ("float32", "bfloat16")
    }


def test_a_quadratic_path_is_found() -> None:
    findings = Findings()
    from benchmarks.gpu_check.kernels import _check_growth

    lengths = (1024, 4096, 16_384, 32_768)
    per_token = {"linear": dict.fromkeys(lengths, 2.0), "mask": {length: length / 4096 for length in lengths}}
    _check_growth(findings, per_token, lengths)
    assert failed(findings) == {"mask: memory is linear in the length"}


def test_a_member_that_hangs_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """As NCCL may: the processes are killed, and the check fails."""
    scenarios = link._Scenarios(Settings("cpu", True, ""), findings := Findings(), 1.0)
    hung = link.Ending("hung", "it did not return", 30.0)
    monkeypatch.setattr(link, "run_members", lambda *_: [hung, hung])
    scenarios.dies("cpu", "cpu")
    scenarios.shared_device("cpu")
    assert failed(findings) == {check.name for check in findings.checks}


# --- The count of memory.


@pytest.fixture
def live() -> Iterator[memory._LiveBytes]:
    with torch.device("meta"), memory._LiveBytes() as counting:
        yield counting


def test_the_count_follows_allocations_and_releases(live: memory._LiveBytes) -> None:
    one = torch.empty(1000, dtype=torch.uint8)
    view = one[:10]
    del one
    other = torch.empty(500, dtype=torch.uint8)
    assert live.peak == 1500, "a view keeps the whole"
    del view
    both = other + other, other * 2
    assert live.peak == 1500
    del both
    assert torch.empty(1001, dtype=torch.uint8).is_meta
    assert live.peak == 1501


def test_checkpointing_lowers_the_count() -> None:
    deep = TINY | {"num_hidden_layers": 8}
    kept, recomputed = (
        memory.count_peak(deep, torch.float32, 256, checkpointing) for checkpointing in (False, True)
    )
    assert recomputed < kept / 2
    assert memory.count_peak(deep, torch.bfloat16, 256, False) < kept


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_estimate_of_check_covers_the_count(dtype: torch.dtype, checkpointing: bool) -> None:
    """The estimate assumes attention over shared prompts, which keeps more, and that all parts of backward need their
    memory at the same time."""
    counted = memory.count_peak(WIDE, dtype, 4096, checkpointing)
    assert 1 <= memory.estimate(WIDE, dtype, 4096, checkpointing) / counted < 2


def test_locked_versions_are_read() -> None:
    lock = "# comment\nray[default]==2.60.0  # via x\ntorch==2.13.0+cpu \\\n    --hash=sha256:0\n"
    assert environment.locked_versions(lock) == {"ray": "2.60.0", "torch": "2.13.0+cpu"}
