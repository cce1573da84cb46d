"""Real reward actors with a user's verifier from the working directory that hangs on one response."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from cluster.core.config import ClusterConfig, RunConfig
from cluster.core.types import ScoringRequest
from cluster.run_state.run_directory import RunDirectory
from cluster.runtime.connect import connect
from cluster.training.actors import ActorGraph
from tests.builders import all_verdicts


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a verifier, and a running Ray."""
    (tmp_path / "my_rewards.py").write_text(
        "import pathlib, time\n"
        "def score(problem, response):\n"
        "    while response == 'hang':\n"
        "        pass\n"
        "    while response == 'wait':\n"
        "        time.sleep(0.01)\n"
        "        if pathlib.Path(problem['go']).exists():\n"
        "            return {'reward': 1, 'answer': response}\n"
        "    return {'reward': response == problem['answer'], 'answer': response}\n"
    )
    monkeypatch.chdir(tmp_path)
    connect(ClusterConfig())
    yield tmp_path
    ray.shutdown()


def verifier_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "HPO_VERIFIER_PROCESS" in process.environ() and str(Path.cwd()) in process.environ()["PWD"]:
                found.append(process)
    return found


def answers(row: int, texts: list[str]) -> list[ScoringRequest]:
    return [ScoringRequest({"answer": f"{row}"}, text, "stop") for text in texts]


async def test_a_slow_verdict_delays_no_other_and_survives_its_actor(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other fifteen verdicts of the call arrive at once. Then the actor is killed, and Ray starts a new one, which
    scores the response again."""
    monkeypatch.setenv("PWD", str(here))
    config = RunConfig.model_validate(
        {
            "task": {"name": "python", "options": {"function": "my_rewards:score"}},
            "reward": {"cpus_per_worker": 0.25, "processes_per_worker": 2, "verifier_timeout_s": 300},
        }
    )
    graph = ActorGraph(config, RunDirectory(here / "run"), here / "model")
    problem = {"answer": "1", "go": str(here / "go")}
    requests = [ScoringRequest(problem, text, "stop") for text in ["1"] * 8 + ["wait"] + ["1"] * 7]
    seen: list[int] = []
    async with graph.rewards() as rewards, asyncio.timeout(120):
        async for verdicts in rewards.score(requests):
            assert {verdict.outcome for _, verdict in verdicts} <= {"correct"}
            seen += [index for index, _ in verdicts]
            if len(seen) == 15 and not (here / "go").exists():
                assert 8 not in seen
                actor = verifier_processes()[0].parent()
                assert actor is not None
                actor.kill()
                (here / "go").touch()
    assert sorted(seen) == list(range(16))


async def test_groups_are_scored_concurrently_and_no_process_is_left(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PWD", str(here))  # identifies the processes of this test
    config = RunConfig.model_validate(
        {
            "task": {"name": "python", "options": {"function": "my_rewards:score"}},
            "reward": {
                "workers": 2,
                "cpus_per_worker": 0.25,
                "processes_per_worker": 2,
                "verifier_timeout_s": 5,
            },
        }
    )
    graph = ActorGraph(config, RunDirectory(here / "run"), here / "model")
    async with graph.rewards() as rewards:
        requests = [answers(row, [f"{row}", "no", "hang" if row == 0 else "no"]) for row in range(8)]
        first, *others = await asyncio.gather(*(all_verdicts(rewards, each) for each in requests))
    assert [verdict.outcome for verdict in first] == ["correct", "incorrect", "limit"]
    for row, verdicts in enumerate(others, start=1):
        assert [verdict.outcome for verdict in verdicts] == ["correct", "incorrect", "incorrect"]
        assert verdicts[0].answer == f"{row}"
    logged = "".join(log.read_text() for log in (here / "run" / "logs").glob("reward-*.log"))
    assert "no verdict on 1 of 3 responses: no verdict within 5 s" in logged
    assert psutil.wait_procs(verifier_processes(), timeout=20)[1] == []
