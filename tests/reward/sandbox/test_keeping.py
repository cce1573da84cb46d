"""The sandbox always gets on, nothing outlives it, and its caps hold for all memory of all processes together."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest

from reward.sandbox import batch
from reward.sandbox.cgroup import Cgroup
from reward.sandbox.pool import Sandbox
from reward.sandbox.processes import memory_bytes, signal_name
from reward.sandbox.spec import Limits, RunnerSpec
from tests import PROJECT
from tests.builders import scored_by

LIMITS = Limits(timeout_s=120.0, memory_mib=256, child_processes=8)
SPEC = RunnerSpec("tests.reward.sandbox.verifiers:one_by_one")
SMALL_OBJECTS = [{"input": f"{i} {i + 1}", "output": [i, str(i)]} for i in range(20_000)]
"""About 1 MB pickled, and slow to unpickle."""


def runs(process_id: int) -> bool:
    try:
        return bool(psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def waits_for(condition: Callable[[], bool], timeout_s: float = 60) -> bool:
    deadline = time.monotonic() + timeout_s
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return met


def assert_ends(process_id: int) -> None:
    assert waits_for(lambda: not runs(process_id))


@pytest.mark.parametrize("patience_s", [batch.PATIENCE_S, 0.0])
@pytest.mark.parametrize(
    ("problem", "text"), [(SMALL_OBJECTS, "x"), ("a problem", "y" * 10_000_000)], ids=["tests", "responses"]
)
async def test_what_takes_long_to_arrive_is_scored(
    monkeypatch: pytest.MonkeyPatch, patience_s: float, problem: Any, text: str
) -> None:
    """With a patience of 0 every item is slow, as on a machine that is overloaded. Each process still gets on."""
    monkeypatch.setattr(batch, "PATIENCE_S", patience_s)
    async with Sandbox(SPEC, LIMITS, 2) as sandbox:
        await scored_by(sandbox, None, ["quick"] * 200)  # so that batches are long
        texts = [f"{i}{text}" for i in range(32)]
        async with asyncio.timeout(120):
            verdicts = await scored_by(sandbox, problem, texts)
    assert [verdict.answer for verdict in verdicts] == [one[:4000] for one in texts]


async def test_a_process_that_has_not_begun_keeps_its_items_until_the_deadline_of_arrival(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process is stopped while its items are on the way. They are scored by another one, and none is to blame."""
    monkeypatch.setattr(batch, "ARRIVAL_TIMEOUT_S", 2.0)
    async with Sandbox(SPEC, replace(LIMITS, timeout_s=0.5), 1) as sandbox:
        (first,) = await scored_by(sandbox, None, ["first"])
        os.kill(int(first.reason.rpartition(" ")[2]), signal.SIGSTOP)
        verdicts = await scored_by(sandbox, None, ["second", "third"])
    assert [verdict.answer for verdict in verdicts] == ["second", "third"]


async def test_each_response_has_a_problem_of_its_own() -> None:
    async with Sandbox(SPEC, LIMITS, 2) as sandbox:
        verdicts = await scored_by(sandbox, ["consumed", 1], [f"{i}" for i in range(100)])
    assert {verdict.outcome for verdict in verdicts} == {"incorrect"}


async def test_a_problem_that_cannot_be_sent_costs_only_its_own_verdicts() -> None:
    class Local:
        """Cannot be pickled."""

    async with Sandbox(SPEC, LIMITS, 1) as sandbox:
        bad, good = await asyncio.gather(
            scored_by(sandbox, Local(), ["a", "b"]), scored_by(sandbox, None, ["c"])
        )
    assert [verdict.outcome for verdict in bad] == ["error", "error"]
    assert "the problem cannot be sent to a verifier process" in bad[0].reason
    assert good[0].answer == "c"


@pytest.mark.parametrize("controlled", [True, False], ids=["control group", "no control group"])
@pytest.mark.parametrize(
    "deed", ["fill_shared_mapping", "fill_memfd", "fill_one_memfd", "fill_shared_files", "fill_children"]
)
async def test_the_memory_cap_holds_for_all_memory_of_all_processes(
    monkeypatch: pytest.MonkeyPatch, deed: str, controlled: bool
) -> None:
    """The time limit is four minutes: the cap ends it."""
    if not controlled:
        monkeypatch.setattr(Cgroup, "create", lambda name, memory_bytes: None)
    async with Sandbox(SPEC, replace(LIMITS, timeout_s=240, memory_mib=128), 1) as sandbox:
        (verdict,) = await scored_by(sandbox, None, [deed])
        assert verdict.outcome == "limit"
        expected = (
            "took more than reward.verifier_memory_mib together",
            "MemoryError",
            "OSError: [Errno 27] File too",
        )
        assert any(reason in verdict.reason for reason in expected), verdict.reason
        assert (await scored_by(sandbox, None, ["on"]))[0].answer == "on"


@pytest.mark.parametrize("controlled", [True, False], ids=["control group", "no control group"])
async def test_a_program_without_session_parent_and_environment_ends_with_its_verifier(
    monkeypatch: pytest.MonkeyPatch, controlled: bool
) -> None:
    if not controlled:
        monkeypatch.setattr(Cgroup, "create", lambda name, memory_bytes: None)
    async with Sandbox(SPEC, LIMITS, 1) as sandbox:
        (verdict,) = await scored_by(sandbox, None, ["escape"])
        assert verdict.outcome == "correct"
    assert verdict.answer is not None
    assert_ends(int(verdict.answer))


async def test_such_a_program_ends_also_if_its_verifier_kills_the_keeper(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Cgroup, "create", lambda name, memory_bytes: None)
    monkeypatch.setenv("ESCAPED", str(tmp_path / "escaped"))
    async with Sandbox(SPEC, LIMITS, 1) as sandbox:
        (verdict,) = await scored_by(sandbox, None, ["escape_and_kill_its_keeper"])
        assert "killed the keeper" in verdict.reason
    escaped = (tmp_path / "escaped").read_text().split()
    assert len(escaped) == 2, "the response is scored once more, in a new process"
    for process_id in escaped:
        assert_ends(int(process_id))


async def test_the_temporary_directory_of_a_verifier_is_removed() -> None:
    async with Sandbox(SPEC, LIMITS, 1) as sandbox:
        left, hanging = await scored_by(sandbox, None, ["leave_a_file", "exit_at_once"])
        assert left.answer is not None
        assert left.answer != tempfile.gettempdir()
        assert hanging.outcome == "error"
        (again,) = await scored_by(sandbox, None, ["leave_a_file"])
        assert again.answer is not None
        assert Path(again.answer).exists()
    assert not Path(left.answer).exists()
    assert not Path(again.answer).exists()


ABANDONED = """
import asyncio
from reward.sandbox.pool import Sandbox
from reward.sandbox.spec import Limits, RunnerSpec
from reward.service import score_in_order

async def main():
    spec = RunnerSpec("tests.reward.sandbox.verifiers:one_by_one")
    async with Sandbox(spec, Limits(timeout_s=600.0), 1) as sandbox:
        (verdict,) = await score_in_order(sandbox, [(None, "leave_a_file")])
        print(verdict.answer, flush=True)
        await score_in_order(sandbox, [(None, "escape_and_hang")])

asyncio.run(main())
"""


def test_nothing_outlives_a_sandbox_whose_process_is_killed() -> None:
    """Its programs are killed and its directory is removed, although it can do neither any more."""
    owner = subprocess.Popen(
        [sys.executable, "-c", ABANDONED], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    directory = Path(owner.stdout.readline().strip())
    assert waits_for((directory / "program").exists)
    program = int((directory / "program").read_text())
    below = [process.pid for process in psutil.Process(owner.pid).children(recursive=True)]
    assert runs(program)
    owner.kill()
    owner.wait()
    for process_id in (*below, program):
        assert_ends(process_id)
    assert waits_for(lambda: not directory.exists())


async def test_a_verifier_that_can_be_started_again_scores_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reward.sandbox.pool.RESTART_DELAY_S", 0.1)
    (tmp_path / "flaky.py").write_text("from tests.reward.sandbox.verifiers import one_by_one\n")
    async with Sandbox(RunnerSpec("flaky:one_by_one", search_path=(str(tmp_path),)), LIMITS, 1) as sandbox:
        (tmp_path / "flaky.py").rename(tmp_path / "away.py")
        for cache in (tmp_path / "__pycache__").glob("*"):
            cache.unlink()
        assert [v.outcome for v in await scored_by(sandbox, None, ["exit_at_once", "later"])] == [
            "error",
            "error",
        ]
        (tmp_path / "away.py").rename(tmp_path / "flaky.py")
        async with asyncio.timeout(60):
            for _ in range(300):
                if (await scored_by(sandbox, None, ["on"]))[0].outcome == "incorrect":
                    return
                await asyncio.sleep(0.1)
    raise AssertionError("it did not start again")


@pytest.mark.parametrize("runner", [asyncio.run, import_module("uvloop").run])
def test_a_sandbox_works_in_the_loop_of_rays_actors_too(runner: Callable[[Any], Any]) -> None:
    async def score() -> list[str]:
        async with Sandbox(SPEC, LIMITS, 1) as sandbox:
            return [verdict.outcome for verdict in await scored_by(sandbox, None, ["a", "exit_at_once", "b"])]

    assert runner(score()) == ["incorrect", "error", "incorrect"]


async def test_an_idle_sandbox_uses_no_processor() -> None:
    def used_s() -> float:
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    async with Sandbox(SPEC, LIMITS, 4) as sandbox:
        await scored_by(sandbox, None, ["warm"] * 100)
        for _ in range(60):  # until the other processes have started
            before = used_s()
            await asyncio.sleep(1)
            if used_s() - before < 0.2:
                return
    raise AssertionError("it never became idle")


def test_every_signal_has_a_name() -> None:
    names = [signal_name(number) for number in range(1, signal.SIGRTMAX + 1)]
    assert len(set(names)) == len(names)
    assert (signal_name(9), signal_name(35), signal_name(int(signal.SIGRTMAX))) == (
        "SIGKILL",
        "SIGRTMIN+1",
        "SIGRTMAX",
    )


def test_memory_that_several_processes_share_counts_once() -> None:
    fd = os.memfd_create("shared")
    os.write(fd, b"x" * 2**25)
    sleeper = [sys.executable, "-S", "-c", "print(flush=True); import time; time.sleep(600)"]
    processes = [subprocess.Popen(sleeper, pass_fds=[fd], stdout=subprocess.PIPE) for _ in range(3)]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        measured = memory_bytes(process.pid for process in processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        os.close(fd)
    assert 2**25 < measured < 2 * 2**25
