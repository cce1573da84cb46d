"""One run has one supervision and one live job, also when answers of the server are lost."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.commands.jobs import submission as submission_module
from cluster.commands.jobs import supervision
from cluster.commands.jobs.package import Package
from cluster.commands.jobs.server import JobServer, ServerAwayError
from cluster.commands.jobs.submission import LiveRunError, Submission, new_id, submit
from cluster.commands.jobs.supervision import Budgets, Ending, supervise
from cluster.commands.jobs.supervision_lock import SupervisedError, supervision_lock
from cluster.core.config import RunConfig
from tests import PROJECT


@dataclass
class Details:
    """The description of a job."""

    submission_id: str
    metadata: dict[str, str]
    start_time: int
    ended: bool = False
    status: Any = field(init=False)
    driver_exit_code: int = 1
    error_type: str = ""

    def __post_init__(self) -> None:
        self.status = SimpleNamespace(is_terminal=lambda: self.ended, value="FAILED")


@dataclass
class Server:
    """A job server in this process."""

    known: list[Details] = field(default_factory=list)
    lost_answers: int = 0
    """The number of submissions that succeed and whose answer is lost."""
    arrives_between: Details | None = None
    """A job that another process submits between our first look and our submission."""
    started: list[str] = field(default_factory=list)
    address: str = "http://head:8265"

    def jobs(self) -> list[Details]:
        return sorted(self.known, key=lambda job: (job.start_time, job.submission_id))

    def stop(self, job: str) -> None:
        for each in self.known:
            each.ended = each.ended or each.submission_id == job

    def start(self, submission: Submission, job: str) -> None:
        if self.arrives_between is not None:
            self.known.append(self.arrives_between)
        self.known.append(Details(job, submission.metadata, len(self.known) + 10))
        self.started.append(job)
        if self.lost_answers:
            self.lost_answers -= 1
            raise ServerAwayError("the answer was lost")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    one = Server()
    monkeypatch.setattr(submission_module, "_send", lambda server, *rest: server.start(*rest))
    monkeypatch.setattr(supervision, "RETRY_S", 0)
    return one


def as_server(server: Server) -> JobServer:
    return cast(JobServer, server)


SUBMISSION = Submission(RunConfig(name="demo"), Package({}, "configs/demo.yaml"), (), {}, {})
FOREIGN = {"run": "demo", "submitter": "process 7 on elsewhere"}


def test_a_second_job_of_a_live_run_is_refused_and_names_who_submitted_it(server: Server) -> None:
    server.known = [Details("theirs", FOREIGN, 1)]
    with pytest.raises(
        LiveRunError, match=r"job theirs \(submitted by process 7 on elsewhere\) already trains"
    ):
        submit(as_server(server), SUBMISSION)
    assert not server.started


def test_of_two_submissions_of_the_same_moment_one_is_withdrawn(server: Server) -> None:
    server.arrives_between = Details("theirs", FOREIGN, 1)
    with pytest.raises(LiveRunError, match="job theirs"):
        submit(as_server(server), SUBMISSION)
    assert [job.submission_id for job in server.known if not job.ended] == ["theirs"]


def test_a_later_submission_by_someone_else_is_theirs_to_withdraw(server: Server) -> None:
    server.arrives_between = Details("theirs", FOREIGN, 1000)
    assert submit(as_server(server), SUBMISSION) == server.started[0]


@pytest.mark.parametrize("lost", [1, 2])
def test_a_job_whose_answer_was_lost_is_not_submitted_twice(
    server: Server, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    server.lost_answers = lost
    job = supervision._submitted(as_server(server), SUBMISSION, 2, 60.0)
    assert server.started == [job]
    assert job.endswith("-try2")


def test_a_supervision_gives_up_a_run_that_another_one_has_submitted(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.known = [Details("ours", SUBMISSION.metadata, 1, ended=True), Details("theirs", FOREIGN, 2)]
    monkeypatch.setattr(supervision, "_ending", lambda *_: Ending.FAILED)
    with pytest.raises(LiveRunError, match="job theirs"):
        supervise(as_server(server), SUBMISSION, "ours", Budgets(9, 9), pytest.fail, pytest.fail)
    assert not server.started


@given(number=st.integers(2, 99))
def test_ids_of_later_jobs_name_their_try(number: int) -> None:
    assert re.fullmatch(rf"demo-\d{{8}}-\d{{6}}-try{number}", new_id(SUBMISSION, number))


HOLDER = """
import sys
from pathlib import Path
from cluster.commands.jobs.supervision_lock import supervision_lock
from cluster.core.config import RunConfig
with supervision_lock("http://head:8265", RunConfig(name="demo", directory=Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_supervision_is_refused_in_one_line_until_the_first_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = RunConfig(name="demo", directory=tmp_path / "runs")
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "runs")]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(SupervisedError, match=f"already supervised by .*process {first.pid} ") as refusal,
            supervision_lock("http://head:8265", config),
        ):
            pytest.fail("two hold it")
        assert "\n" not in str(refusal.value)
        for address, other in (
            ("http://other:8265", config),
            ("http://head:8265", config.model_copy(update={"name": "x"})),
        ):
            with supervision_lock(address, other):
                pass
        first.kill()
    with supervision_lock("http://head:8265", config):
        pass
    assert not (tmp_path / "runs").exists(), "the run directory is not here"
    assert not list((tmp_path / ".cache/hpo-trainer/supervisions").iterdir())
    assert replace(SUBMISSION, fresh=True).metadata == SUBMISSION.metadata
