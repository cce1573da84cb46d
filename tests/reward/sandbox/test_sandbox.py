"""The sandbox with real processes and verifiers that fail in every way. No process is left running."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.core.types import Verdict
from reward.sandbox.pool import Sandbox, SandboxError
from reward.sandbox.spec import Limits, RunnerSpec
from tests.builders import scored_by

LIMITS = Limits(timeout_s=1.0, memory_mib=256, child_processes=8)


def runner_spec(factory: str) -> RunnerSpec:
    return RunnerSpec(f"tests.reward.sandbox.verifiers:{factory}")


@contextlib.asynccontextmanager
async def sandboxed(factory: str = "one_by_one", processes: int = 2, **limits: Any) -> AsyncIterator[Sandbox]:
    wanted = {name: getattr(LIMITS, name) for name in LIMITS.__slots__} | limits
    async with Sandbox(runner_spec(factory), Limits(**wanted), processes) as sandbox:
        yield sandbox


def bearing(mark: str) -> set[int]:
    """Return the processes that inherited the environment variable `mark`."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and mark in process.environ():
                found.add(process.pid)
    return found


@pytest.fixture(autouse=True)
def _nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    mark = f"STARTED_BY_TEST_{uuid.uuid4().hex}"
    monkeypatch.setenv(mark, "1")
    yield
    deadline = time.monotonic() + 10  # killed processes may need some time to disappear
    while bearing(mark) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert bearing(mark) == set()


def outcomes(verdicts: list[Verdict]) -> list[str]:
    return [verdict.outcome for verdict in verdicts]


@pytest.mark.parametrize(
    ("deed", "outcome", "reason"),
    [
        ("hang", "limit", "no verdict within 1 s (reward.verifier_timeout_s)"),
        ("hang_in_c", "limit", "no verdict within"),
        ("power_tower", "limit", "no verdict within"),
        ("ignore_sigterm", "limit", "no verdict within"),
        ("fork_and_hang", "limit", "no verdict within"),
        ("fork_and_return", "correct", "it says so"),
        ("leave_a_daemon", "correct", "it says so"),
        ("leave_a_daemon_and_exit", "error", "the verifier ended its process with exit code 3"),
        ("fork_bomb", "limit", "the verifier had more than 8 processes running"),
        ("memory_bomb", "limit", "MemoryError: more than reward.verifier_memory_mib"),
        ("exit_at_once", "error", "the verifier ended its process with exit code 3"),
        ("crash", "error", "the verifier's process died of SIGSEGV"),
        ("die_of_a_realtime_signal", "error", "the verifier's process died of SIGRTMIN+1"),
        ("kill_its_group", "error", "the verifier's process died of SIGKILL"),
        ("kill_its_keeper", "error", "the verifier or its machine killed the keeper of its process"),
        ("escape_and_exit", "error", "the verifier ended its process with exit code 3"),
        ("flood_the_channel", "error", "something was written into the channel of the verifier process"),
        ("close_everything", "error", "the verifier "),
        ("write_garbage", "error", "the verifier process sent a reply of 4294967295 bytes"),
        ("forge_a_reply", "error", "something was written into the channel of the verifier process"),
        ("recurse", "error", "RecursionError: maximum recursion depth exceeded"),
        ("flood_stdout", "correct", "it says so"),
        ("leave_a_thread", "correct", "it says so"),
        ("raise_value_error", "error", "ValueError: not a number (verifiers.py:"),
        ("raise_system_exit", "error", "SystemExit: 0"),
        ("raise_keyboard_interrupt", "error", "KeyboardInterrupt"),
        ("raise_unprintable", "error", "Unprintable"),
        ("give_none", "error", "TypeError: the verifier gave None, which is not a Verdict"),
        ("give_nan", "error", "the verifier returned the reward nan"),
        ("give_a_huge_number", "error", "the verifier returned a reward beyond the largest float"),
        ("give_an_unusable_text", "error", "RuntimeError: no words"),
        ("give_an_unknown_outcome", "error", "the verifier gave the outcome 'perhaps'"),
    ],
)
async def test_a_failing_verifier_costs_only_its_own_verdict(deed: str, outcome: str, reason: str) -> None:
    async with sandboxed(timeout_s=1.0 if reason.startswith("no verdict within") else 60.0) as sandbox:
        before = [f"before {i}" for i in range(20)]
        after = [f"after {i}" for i in range(20)]
        verdicts = await scored_by(sandbox, "a problem", [*before, deed, *after])
        assert [verdict.answer for verdict in verdicts[:20]] == before
        assert [verdict.answer for verdict in verdicts[21:]] == after
        assert verdicts[20].outcome == outcome
        assert verdicts[20].reason.startswith(reason)
        assert (await scored_by(sandbox, "a problem", ["still here"]))[0].answer == "still here"


async def test_many_failures_together_cost_only_their_own_verdicts() -> None:
    deeds = [
        "hang",
        "exit_at_once",
        "memory_bomb",
        "close_everything",
        "fork_and_return",
        "raise_system_exit",
    ]
    texts = [text for deed in deeds for text in (deed, *(f"{deed} {i}" for i in range(8)))]
    async with sandboxed(processes=3, timeout_s=6.0) as sandbox:
        verdicts = dict(zip(texts, await scored_by(sandbox, "a problem", texts), strict=True))
    expected = ["limit", "error", "limit", "error", "correct", "error"]
    assert outcomes([verdicts[deed] for deed in deeds]) == expected
    assert all(verdicts[text].answer == text for text in texts if text not in deeds)


async def test_a_hanging_verdict_delays_no_other() -> None:
    """It may take a minute. The second process scores the other fifteen, also those behind it in the same batch."""
    texts = [f"text {i}" for i in range(15)]
    async with sandboxed(timeout_s=60.0) as sandbox:
        await scored_by(sandbox, "warm", [f"{i}" for i in range(500)])  # so that batches are long
        hanging = asyncio.create_task(scored_by(sandbox, "a problem", ["hang"]))
        verdicts = await asyncio.wait_for(scored_by(sandbox, "a problem", texts), timeout=20)
        assert not hanging.done()
    assert [verdict.answer for verdict in verdicts] == texts
    assert (await hanging)[0] == Verdict("error", 0.0, None, "the sandbox was closed")


async def test_a_timeout_counts_from_the_start_of_the_scoring() -> None:
    """Thirty verdicts of 50 ms wait for one process; the last one waits longer than a verdict may take."""
    async with sandboxed(processes=1) as sandbox:
        assert set(outcomes(await scored_by(sandbox, "a problem", ["sleep"] * 30))) == {"correct"}


async def test_calls_at_the_same_time_get_their_own_verdicts() -> None:
    async with sandboxed() as sandbox:
        calls = [[f"{call}/{i}" for i in range(call)] for call in range(30)]
        answers = await asyncio.gather(*(scored_by(sandbox, call, texts) for call, texts in enumerate(calls)))
    assert [[verdict.answer for verdict in verdicts] for verdicts in answers] == calls


async def test_no_process_is_started_per_response_and_worn_out_ones_are_replaced() -> None:
    async with sandboxed(processes=1, recycle_after=100) as sandbox:
        verdicts = await scored_by(sandbox, "a problem", [f"text {i}" for i in range(300)])
    processes = Counter(verdict.reason for verdict in verdicts)
    assert 2 <= len(processes) <= 4
    assert max(processes.values()) < 100 + 64  # the batch in progress is finished


async def test_texts_of_any_kind_and_length_are_transferred() -> None:
    texts = ["", "\ud800 half a pair", "\0", "∫" * 300_000, "\"}]'"]
    async with sandboxed() as sandbox:
        verdicts = await scored_by(sandbox, {"any": ("problem",)}, texts)
    expected = ["", "\\ud800 half a pair", "\\u0000", "∫" * 4000, "\"}]'"]
    assert [verdict.answer for verdict in verdicts] == expected


async def test_in_a_batch_one_failure_costs_one_verdict() -> None:
    async with sandboxed("in_batches", processes=1) as sandbox:
        texts = [f"text {i}" for i in range(40)]
        for deed, outcome in (
            ("raise_value_error", "error"),
            ("hang", "limit"),
            ("exit_at_once", "error"),
            ("give_none", "error"),
        ):
            verdicts = await scored_by(sandbox, "a problem", [*texts, deed, *texts])
            assert outcomes(verdicts) == ["incorrect"] * 40 + [outcome] + ["incorrect"] * 40, deed
        # If the number of verdicts is wrong, all responses are scored again alone, and then correctly.
        assert outcomes(await scored_by(sandbox, "a problem", [*texts, "one_too_few"])) == ["incorrect"] * 41


async def test_in_a_batch_finished_verdicts_do_not_wait_for_unfinished_ones() -> None:
    """The late verdict may take five minutes."""
    texts = [*(f"text {i}" for i in range(15)), "late"]
    async with sandboxed("in_batches", processes=1, timeout_s=300.0) as sandbox:
        seen: dict[int, str | None] = {}
        async with asyncio.timeout(30):
            async for verdicts in sandbox.score([("a problem", text) for text in texts]):
                seen |= {index: verdict.answer for index, verdict in verdicts}
                if len(seen) == 15:
                    break
    assert seen == dict(enumerate(texts[:15]))


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("unbuildable", "ImportError: no module named nowhere"),
        ("unbuildable_for_ever", "the verifier was not ready after 1 s"),
        ("unbuildable_for_memory", "MemoryError"),
        ("not_there", "AttributeError: module 'tests.reward.sandbox.verifiers' has no attribute 'not_there'"),
    ],
)
async def test_a_runner_that_cannot_be_made_says_why(factory: str, reason: str) -> None:
    with pytest.raises(SandboxError, match=reason):
        async with sandboxed(factory, start_timeout_s=1.0 if "ever" in factory else 60.0):
            raise AssertionError("it started")


async def test_a_runner_that_can_no_longer_be_made_gives_errors_without_waiting(tmp_path: Path) -> None:
    """The verifier is edited during the run."""
    module = tmp_path / "short_lived.py"
    module.write_text("from tests.reward.sandbox.verifiers import one_by_one\n")
    short_lived = RunnerSpec("short_lived:one_by_one", search_path=(str(tmp_path),))
    async with Sandbox(short_lived, LIMITS, processes=1) as sandbox:
        module.write_text("import nowhere\n")
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        verdicts = await scored_by(sandbox, "a problem", ["exit_at_once", "another"])
        assert outcomes(verdicts) == ["error", "error"]
        assert (
            "cannot be started any more: ModuleNotFoundError: No module named 'nowhere'" in verdicts[1].reason
        )
        assert outcomes(await scored_by(sandbox, "a problem", ["later"])) == ["error"]


async def test_verifier_processes_import_no_engine(tmp_path: Path) -> None:
    """There are many of them, and they start often."""
    (tmp_path / "looking.py").write_text(
        "import sys\n"
        "from cluster.core.types import Verdict\n"
        "from reward.runners import task_runner\n"
        "class Looking:\n"
        "    batched = False\n"
        "    def score(self, problem, response):\n"
        "        heavy = {'torch', 'ray', 'vllm', 'transformers', 'deepspeed', 'datasets'} & set(sys.modules)\n"
        "        return Verdict('correct', 1.0, ' '.join(heavy), '')\n"
        "def make():\n"
        "    task_runner('countdown', {}, ())\n"
        "    return Looking()\n"
    )
    async with Sandbox(RunnerSpec("looking:make", search_path=(str(tmp_path),)), Limits(), 1) as sandbox:
        assert (await scored_by(sandbox, None, [""]))[0].answer == ""
