"""A new user's session on a cluster of three nodes, with the commands of the documentation.

The user submits the demonstration, watches it, scales it, loses a node, stops the run, resumes it, opens the report in
a browser and compares two objectives. The engines, the learner, the cluster and the browser are real.
`pytest -m slow -s tests/integration/test_new_user.py` shows the transcript.

The nodes share the cores and the disk of this machine and have their own addresses (tests/integration/network.py). The
test takes a picture of the report if there is a browser (tests/browser.py).
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from cluster.run_state.run_directory import RunDirectory
from cluster.tracking import read_metrics
from tests import PROJECT
from tests.browser import NO_BROWSER, browser_command
from tests.integration.network import Network
from tests.waiting import until as until_in

pytestmark = [pytest.mark.timeout(2400), pytest.mark.slow]
until = partial(until_in, timeout_s=300)
BIN = Path(sys.executable).parent
STEPS = 90


@dataclass
class Terminal:
    """The terminal of the user. It prints all commands and their output as a transcript."""

    folder: Path
    """The folder for the files of the cluster's nodes."""
    network: Network
    nodes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return kept | {"PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]), "RAY_AUTH_MODE": "token"}

    def types(self, *words: str, on: str | None = None, timeout_s: float = 300) -> str:
        """Run a command `on` a node, or on this machine, which is not part of the cluster. Returns its output."""
        print(f"\n{on or 'here'}$ {shlex.join(words)}", flush=True)
        started = time.monotonic()
        done = subprocess.run(
            [*(self.network.inside(on) if on else ()), *words],
            cwd=PROJECT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        said = done.stdout + done.stderr
        lines = said.splitlines()
        print("\n".join(lines if len(lines) < 30 else [*lines[:10], "[…]", *lines[-15:]]))
        print(f"({time.monotonic() - started:.0f} s)", flush=True)
        assert done.returncode == 0, said
        return said

    def launch(self, *words: str, on: str | None = None, timeout_s: float = 300) -> str:
        return self.types("python", "launch.py", *words, on=on, timeout_s=timeout_s)

    def start_node(self, name: str, *options: str) -> None:
        """Start a node in its own process, which runs as long as the node (`ray start --block`)."""
        folder = tempfile.mkdtemp(prefix="n", dir=self.folder)
        self.addresses[name] = self.network.add(name)
        where = f"--node-ip-address={self.addresses[name]}"
        words = ["ray", "start", "--block", where, "--num-cpus=1", f"--temp-dir={folder}", *options]
        print(f"\n{name}$ {shlex.join(words)} &", flush=True)
        with open(self.folder / f"{name}.log", "w") as log:
            self.nodes[name] = subprocess.Popen(
                [*self.network.inside(name), *words],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def is_up(self, name: str) -> bool:
        said = (self.folder / f"{name}.log").read_text()
        assert self.nodes[name].poll() is None, said
        return "Ray runtime started" in said

    def kill_node(self, name: str) -> None:
        """Kill all processes of a node at once, as a power failure would."""
        print(f"\n# node {name} is lost", flush=True)
        node = self.nodes.pop(name)
        if node.poll() is not None:  # the node ended before; `is_up` reports why
            return
        top = psutil.Process(node.pid)
        lost = [top, *top.children(recursive=True)]
        for process in lost:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(lost, timeout=30)

    @property
    def job_server(self) -> tuple[str, str]:
        return "--address", f"http://{self.addresses['head']}:8265"

    @property
    def cluster(self) -> str:
        return f"{self.addresses['head']}:6379"


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with (
        tempfile.TemporaryDirectory(prefix="u", dir="/tmp", ignore_cleanup_errors=True) as folder,
        Network() as network,
    ):
        terminal = Terminal(Path(folder), network)
        try:
            make_token = [
                "ray",
                "get-auth-token",
                "--generate",
            ]  # it prints the token, so it is not in the transcript
            subprocess.run(make_token, env=terminal.environment, check=True, stdout=subprocess.DEVNULL)
            terminal.start_node(
                "head", "--head", "--port=6379", "--dashboard-host=0.0.0.0", "--labels=pool=reserved"
            )
            until(lambda: answers(terminal.addresses["head"], 8265), "the cluster's job server")
            for name in ("spot-1", "spot-2"):
                terminal.start_node(name, f"--address={terminal.cluster}", "--labels=pool=spot")
                until(lambda: terminal.is_up(name), f"node {name}")  # noqa: B023
            yield terminal
        finally:
            for name in list(terminal.nodes):
                terminal.kill_node(name)


def answers(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def rows_of(run: Path) -> list[dict[str, Any]]:
    return list(read_metrics(RunDirectory(run).metrics_file))


def reaches(run: Path, step: int) -> Callable[[], bool]:
    return lambda: any(row["step"] >= step for row in rows_of(run))


def test_the_session_of_a_new_user(terminal: Terminal, tmp_path: Path) -> None:
    runs, run = tmp_path / "runs", tmp_path / "runs" / "demo"
    labels = tmp_path / "labels.yaml"
    base = yaml.safe_load((PROJECT / "configs/demo.yaml").read_text())
    base["cluster"] = {"node_labels": {"learner": {"pool": "reserved"}, "rollout": {"pool": "spot"}}}
    labels.write_text(yaml.safe_dump(base))
    settings = [
        f"steps={STEPS}",
        f"directory={runs}",
        "checkpoint.every_steps=2",
        "evaluation.every_steps=45",
    ]
    join = f"cluster.address={terminal.cluster}"

    terminal.launch("doctor", str(labels), "--address", terminal.cluster, on="head")
    terminal.launch("check", str(labels), *settings, join, "--cluster", on="head")
    terminal.launch("submit", str(labels), *settings, "--no-follow", *terminal.job_server)
    until(reaches(run, 2), "two steps", timeout_s=600)
    assert "running" in terminal.launch("status", "demo", *terminal.job_server)
    assert "demo" in terminal.launch("list", *terminal.job_server)

    assert "2 → 3" in terminal.launch("scale", str(run), "--rollout-workers", "3", on="head")
    until(lambda: rows_of(run)[-1]["fleet/healthy_workers"] == 3, "a third worker")
    assert "3 → 2" in terminal.launch("scale", str(run), "--rollout-workers", "2", on="head")
    until(lambda: rows_of(run)[-1]["fleet/workers"] == 2, "two workers again")

    terminal.kill_node("spot-2")
    lost_at = rows_of(run)[-1]["step"]
    until(reaches(run, int(lost_at) + 2), "the run to continue without the node", timeout_s=600)

    assert "is stopped" in terminal.launch("stop", "demo", *terminal.job_server)
    stopped_at = rows_of(run)[-1]["step"]
    assert stopped_at < STEPS, "the run must be stopped before it ends"
    said = terminal.launch("submit", str(labels), *settings, *terminal.job_server, timeout_s=900)
    assert "resuming at step" in said
    assert [row["step"] for row in rows_of(run)] == list(range(STEPS + 1))

    terminal.launch("report", str(run))
    show_in_browser(run / "report.html", tmp_path / "report.png")
    for name in list(terminal.nodes):  # a comparison runs on this machine only
        terminal.kill_node(name)
    compare_two_objectives(terminal, tmp_path / "two.yaml", runs)
    print(json.dumps({"steps": STEPS, "lost a node at": lost_at, "stopped at": stopped_at}))


def show_in_browser(page: Path, picture: Path) -> None:
    """Write a screenshot of the page as a browser shows it, if there is a browser."""
    browser = browser_command()
    if browser is None:
        print(f"\nno picture of {page}: {NO_BROWSER}", flush=True)
        return
    url = page.as_uri()
    print(f"\nhere$ chromium {url}", flush=True)
    shown = [*browser, "--window-size=1280,2400"]
    subprocess.run(
        [*shown, f"--screenshot={picture}", url], check=True, stderr=subprocess.DEVNULL, timeout=120
    )  # without its messages about the missing desktop
    assert picture.stat().st_size > 20_000
    if kept := os.environ.get("KEEP_SCREENSHOT"):
        shutil.copy(picture, kept)


def compare_two_objectives(terminal: Terminal, comparison: Path, runs: Path) -> None:
    comparison.write_text(
        yaml.safe_dump(
            {
                "name": "two",
                "base": str(PROJECT / "configs/demo.yaml"),
                "directory": str(runs),
                "overrides": [
                    "steps=2",
                    "learner.warmup_steps=0",
                    "evaluation.every_steps=2",
                    "evaluation.prompts=20",
                ],
                "seeds": [0],
                "baseline": "grpo",
                "variants": {"grpo": ["objective.name=grpo"], "a_hpo": ["objective.name=a_hpo"]},
            }
        )
    )
    table = terminal.launch("compare", str(comparison), timeout_s=900)
    assert "a_hpo" in table
