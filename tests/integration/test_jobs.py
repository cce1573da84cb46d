"""Runs that are submitted as jobs to a cluster of several nodes.

They are placed by labels, scaled, watched and stopped, and they lose a node and their driver. Only the engines are
simulated.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray._private.authentication.authentication_token_setup import (
    enable_token_auth_by_default,
    ensure_token_if_auth_enabled,
)
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from cluster.commands.jobs.package import package
from cluster.commands.jobs.server import JobServer, JobServerError, has_ended
from cluster.commands.jobs.submission import DriverPlacement, Submission, refuse_live_run, send_keys, submit
from cluster.commands.jobs.supervision import Budgets, Ending, follow, supervise
from cluster.core.config import ClusterConfig, RunConfig
from cluster.run_state.run_directory import RunDirectory
from cluster.tracking import read_metrics
from cluster.training.control import scale
from tests import PROJECT
from tests.simulated import assert_complete, simulation
from tests.waiting import until as until_in

PLANTED = "planted0" * 5
ROLES = {"driver": {"role": "driver"}, "rollout": {"role": "rollout"}}
FREE_PORT = {"dashboard_agent_listen_port": 0}
"""An option for an unused port. The default port is in use if another Ray runs on the machine, and then the cluster
accepts no job."""
pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]
until = partial(until_in, timeout_s=120)


@dataclass
class Site:
    """A cluster, and the address of its job server."""

    cluster: Cluster
    server: JobServer
    folder: Path

    def add_node(self, role: str, cpus: int = 2) -> Any:
        """Add a node with its own folder, as on separate machines.

        Like `ray start`, each node records the address of its cluster in its folder. Otherwise a driver on it would
        connect to any cluster of this machine.
        """
        folder = tempfile.mkdtemp(prefix="n", dir=self.folder)
        Path(folder, "ray_current_cluster").write_text(self.cluster.address)
        return self.cluster.add_node(num_cpus=cpus, labels={"role": role}, temp_dir=folder, **FREE_PORT)

    def workers(self) -> dict[int, str]:
        """Return the node id of each live rollout worker by its process id."""
        alive = list_actors(address=self.server.address, filters=[("state", "=", "ALIVE")])
        return {actor.pid: actor.node_id for actor in alive if actor.class_name.endswith("SimulatedWorker")}

    def until_step(self, step: int, job: str, config: RunConfig) -> None:
        try:
            until(
                lambda: steps_done(config) >= step or has_ended(self.server.details(job)),
                f"step {step} of {job}",
            )
            assert steps_done(config) >= step
        except AssertionError as error:
            logs = "\n".join(file.read_text() for file in RunDirectory(config.run_directory).logs.glob("*"))
            details = self.server.details(job)
            error.add_note(f"{details.status} {details.message}\n{self.server.log(job)}\n{logs}")
            raise


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Start a head without CPUs, a node for drivers and a node for two rollout workers."""
    with (
        tempfile.TemporaryDirectory(prefix="j", dir="/tmp", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_TMPDIR", folder)
        enable_token_auth_by_default()  # as `ray.init` does when it starts a cluster
        ensure_token_if_auth_enabled()
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        fast_detection = {  # a lost node is detected after 10 s
            "health_check_initial_delay_ms": 5000,
            "health_check_period_ms": 2000,
            "health_check_failure_threshold": 5,
        }
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": True,
                "dashboard_port": 0,
                "_system_config": fast_detection,
                **FREE_PORT,
            },
        )
        try:
            site = Site(cluster, JobServer(f"http://{cluster.webui_url}"), Path(folder))
            site.add_node("driver", cpus=1)
            site.add_node("rollout")
            yield site
        finally:
            cluster.shutdown()


@dataclass(frozen=True)
class Simulated(Submission):
    """A submission of a run with simulated engines, in place of `launch.py train`."""

    command: tuple[str, ...] = ()

    @property
    def entrypoint(self) -> str:
        return "exec " + shlex.join(self.command)


def simulated(tmp_path: Path, name: str, **changes: Any) -> Simulated:
    run = simulation(tmp_path, steps=60, max_staleness=1, cpus_per_worker=1.0, workers=2)
    values = run.config.model_dump(mode="json") | {
        "name": name,
        "checkpoint": {"every_steps": 5},
        "cluster": {"node_labels": {"rollout": ROLES["rollout"]}, "placement_timeout_s": 60},
        **changes,
    }
    config = RunConfig.model_validate(values)
    specification = {"config": config.model_dump(mode="json"), "faults": str(run.faults), "address": None}
    return Simulated(
        config,
        package(PROJECT, PROJECT / "configs/demo.yaml"),
        (),
        {},
        {},
        DriverPlacement(labels=ROLES["driver"]),
        command=("python", "-m", "tests.simulated", json.dumps(specification)),
    )


def steps_done(config: RunConfig) -> int:
    file = RunDirectory(config.run_directory).metrics_file
    return max((row["step"] for row in read_metrics(file)), default=-1) if file.exists() else -1


def driver_of(run: str) -> psutil.Process:
    """Return the process of the driver, which is on this machine like all nodes."""
    (found,) = [
        process
        for process in psutil.process_iter(["cmdline"])
        if "tests.simulated" in (process.info["cmdline"] or [])
        and f'"name": "{run}"' in process.info["cmdline"][-1]
    ]
    return found


def command_line(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "launch.py", *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_submitted_run_is_placed_scaled_loses_a_node_and_finishes(site: Site, tmp_path: Path) -> None:
    submission = simulated(tmp_path, "placed", steps=500)
    job = submit(site.server, submission)
    site.until_step(1, job, submission.config)
    with pytest.raises(
        JobServerError, match=f"job {job} .* already trains the run placed.*launch.py stop placed"
    ):
        refuse_live_run(site.server, "placed")

    (first,) = until(lambda: set(site.workers().values()), "the workers to be seen")
    assert site.server.details(job).driver_node_id not in (first, site.cluster.head_node.node_id)
    second = site.add_node("rollout")
    said = scale(submission.config.run_directory, 4, site.cluster.address)
    assert said.startswith("rollout workers: 2 → 4")
    until(lambda: set(site.workers().values()) == {first, second.node_id}, "workers on the second node")

    site.cluster.remove_node(second, allow_graceful=False)
    until(lambda: set(site.workers().values()) == {first}, "the loss to be seen")
    details = follow(site.server, job, lambda _: None)
    assert details.status.value == "SUCCEEDED", details.message
    assert_complete(submission.config)


def test_a_run_whose_driver_is_killed_is_submitted_again_and_resumes(site: Site, tmp_path: Path) -> None:
    submission = simulated(tmp_path, "killed", steps=100)
    said: list[str] = []

    job = submit(site.server, submission)
    site.until_step(12, job, submission.config)
    driver_of("killed").send_signal(signal.SIGKILL)
    ending = supervise(site.server, submission, job, Budgets(1, 0), lambda _: None, said.append)
    assert ending is Ending.DONE
    assert len(said) == 1
    assert "failed" in said[0]
    assert "-try2 resumes" in said[0]
    assert_complete(submission.config)  # every step once


def test_the_job_commands_list_show_and_stop_a_run(site: Site, tmp_path: Path) -> None:
    # The driver is on the head, because Ray finds only the log of the head if several nodes share a machine.
    submission = replace(simulated(tmp_path, "watched", steps=100_000), placement=DriverPlacement())
    job = submit(site.server, submission)
    site.until_step(1, job, submission.config)
    where = ("--address", site.server.address)

    listed = json.loads(command_line("list", "--json", *where).stdout)
    assert {"job": job, "run": "watched", "status": "running"}.items() <= listed[-1].items()
    status = command_line("status", "watched", *where)
    assert f"run_directory  {submission.config.run_directory}\n" in status.stdout, status
    driver = driver_of("watched")
    stopped = command_line("stop", "watched", *where)
    assert "is stopped" in stopped.stderr, stopped
    assert not driver.is_running()
    until(lambda: not site.workers(), "the workers to be gone")
    logs = command_line("logs", job, "--follow", *where)
    assert "Running entrypoint" in logs.stdout
    assert logs.returncode == 130, logs
    again = command_line("stop", job, *where)
    assert (again.returncode, "has already ended" in again.stderr) == (2, True)


def test_a_key_reaches_the_driver_and_nothing_that_others_can_read(site: Site, tmp_path: Path) -> None:
    said = "import os; k = os.environ['WANDB_API_KEY']; print('received one of', len(k), k.count('planted0'))"
    code = f"from cluster.runtime.job import receive_keys; receive_keys(print); {said}"
    keys = {"WANDB_API_KEY": PLANTED}
    submission = Simulated(
        RunConfig(name="keyed", directory=tmp_path),
        package(PROJECT, PROJECT / "configs/demo.yaml"),
        (),
        {},
        keys,
        command=("python", "-c", code),
    )
    job = submit(site.server, submission)
    send_keys(site.server, job, keys)
    written: list[str] = []
    details = follow(site.server, job, written.append)
    log = "".join(written)
    assert "received one of 40 5" in log, log
    assert details.status.value == "SUCCEEDED"

    shown = [known.model_dump_json() for known in site.server.jobs()]
    assert any(job in one for one in shown)
    assert not any(PLANTED in text for text in (log, site.server.log(job), *shown))
    for file in site.folder.rglob("*"):
        if file.is_file():
            assert PLANTED.encode() not in file.read_bytes(), file
    store = ray.experimental.internal_kv.GcsClient(address=site.cluster.address)
    for name in store.internal_kv_keys(b"", None):
        assert PLANTED.encode() not in (store.internal_kv_get(name, None) or b"")
        assert b"_hpo_keys_" not in name, "the sealed keys must be deleted"


def test_a_cluster_with_another_ray_version_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.commands.jobs.server.RAY_VERSION", "9.9.9")
    with pytest.raises(JobServerError, match=rf"runs Ray {ray.__version__}, and this project needs 9\.9\.9"):
        JobServer(site.server.address)


def test_a_run_that_does_not_fit_the_cluster_is_refused_before_it_starts(site: Site) -> None:
    from cluster.commands.check import check_cluster

    config = RunConfig(
        cluster=ClusterConfig(address=site.cluster.address, node_labels={"learner": {"role": "none"}})
    )
    problems, has = check_cluster(config)
    assert [problem.where for problem in problems] == ["cluster.node_labels.learner"]
    assert has.startswith("3 node(s), 3 CPU")
