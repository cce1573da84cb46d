"""Real reward actors: a user's verifier, found in the working directory, that hangs on one response."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from cluster.actor_graph import ActorGraph
from cluster.config import ClusterConfig, RunConfig
from cluster.placement import connect
from cluster.run_directory import RunDirectory
from reward.scoring import Judgeable
from tests.builders import all_verdicts


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a verifier, and Ray."""
    (tmp_path / "my_rewards.py").write_text(
        "def score(problem, response):\n"
        "    while response == 'hang':\n"
        "        pass\n"
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


def answers(row: int, texts: list[str]) -> list[Judgeable]:
    return [Judgeable({"answer": f"{row}"}, text, "stop") for text in texts]


async def test_a_hanging_verdict_holds_up_none_that_it_came_with(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has five minutes. The fifteen that were handed over with it are there at once."""
    monkeypatch.setenv("PWD", str(here))
    config = RunConfig.model_validate(
        {
            "task": {"name": "python", "options": {"function": "my_rewards:score"}},
            "reward": {"cpus_per_worker": 0.25, "processes_per_worker": 2, "verifier_timeout_s": 300},
        }
    )
    graph = ActorGraph(config, RunDirectory(here / "run"), here / "model")
    async with graph.rewards() as rewards:
        seen: dict[int, str] = {}
        async with asyncio.timeout(60):
            async for placed in rewards.judge(answers(1, ["1"] * 8 + ["hang"] + ["1"] * 7)):
                seen |= {place: verdict.outcome for place, verdict in placed}
                if len(seen) == 15:
                    break
    assert seen == dict.fromkeys([*range(8), *range(9, 16)], "right")


async def test_groups_are_scored_side_by_side_and_nothing_is_left(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PWD", str(here))  # by which these processes are known
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
        asked = [answers(row, [f"{row}", "no", "hang" if row == 0 else "no"]) for row in range(8)]
        first, *others = await asyncio.gather(*(all_verdicts(rewards, each) for each in asked))
    assert [verdict.outcome for verdict in first] == ["right", "wrong", "timeout"]
    for row, verdicts in enumerate(others, start=1):
        assert [verdict.outcome for verdict in verdicts] == ["right", "wrong", "wrong"]
        assert verdicts[0].answer == f"{row}"
    logged = "".join(log.read_text() for log in (here / "run" / "logs").glob("reward-*.log"))
    assert "no verdict on 1 of 3 responses: no verdict within 5 s" in logged
    assert psutil.wait_procs(verifier_processes(), timeout=20)[1] == []
