"""W&B is isolated: logged metrics are in its file, and its failures never make the trainer wait or fail.

Real wandb runs in subprocesses, offline or against a server on this machine that refuses or hangs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.core.config import RunConfig
from cluster.core.errors import RefusedError
from cluster.metrics.catalogue import CHARTED, METRICS
from cluster.run_state.run_directory import RunDirectory
from cluster.tracking import alerts, wandb_sink
from cluster.tracking.alerts import Alert
from cluster.tracking.wandb_sink import WandbSink
from tests import PROJECT
from tests.cluster.tracking.wandb_runs import finish, name_of, records, start


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[list[Any]]]:
    """Return the output of a run and its resumption, and the records of the two `.wandb` files."""
    directory = tmp_path_factory.mktemp("wandb")
    output = finish(start(directory, "offline", runs=2), 90)
    files = sorted((directory / "run" / "wandb").glob("offline-run-*/*.wandb"))
    return output, [list(records(file)) for file in files]


def test_offline_metrics_are_in_the_file(offline: tuple[str, list[list[Any]]]) -> None:
    history = [
        {name_of(item): json.loads(item.value_json) for item in record.history.item}
        for record in offline[1][0]
        if record.HasField("history")
    ]
    assert [(row["step"], row["reward/mean"]) for row in history if "reward/mean" in row] == [
        (0, 0.125),
        (1, 0.125),
    ]
    (table,) = [row for row in history if "samples/nrows" in row]
    assert (table["step"], table["samples/nrows"], table["samples/ncols"]) == (0, 1, 6)


def test_offline_config_summary_and_axis_are_in_the_file(offline: tuple[str, list[list[Any]]]) -> None:
    first = offline[1][0]
    (run,) = [record.run for record in first if record.HasField("run")]
    assert (run.project, run.run_group, sorted(run.tags)) == ("laws", "a", ["t1", "t2"])
    assert json.loads({item.key: item.value_json for item in run.config.update}["seed"]) == 7
    metrics = [record.metric for record in first if record.HasField("metric")]
    assert any(metric.glob_name == "*" and metric.step_metric == "step" for metric in metrics)
    summary = [item for record in first if record.HasField("summary") for item in record.summary.update]
    assert any("pass_at_1" in name_of(item) and "0.625" in item.value_json for item in summary)


def test_charts_summaries_and_hidden_metrics_are_defined(offline: tuple[str, list[list[Any]]]) -> None:
    defined = {record.metric.name: record.metric for record in offline[1][0] if record.HasField("metric")}
    assert set(METRICS) <= set(defined)
    assert all(defined[key].step_metric == "step" for key in METRICS)
    assert defined["eval/pass_at_1"].summary.max
    assert defined["reward/mean"].summary.last
    assert defined["objective/ratio_mean"].summary.none
    assert {key for key in METRICS if defined[key].options.hidden} == set(METRICS) - CHARTED


def test_histograms_alerts_and_the_code_are_in_the_file(offline: tuple[str, list[list[Any]]]) -> None:
    first = offline[1][0]
    told = {
        name_of(item): item.value_json
        for record in first
        if record.HasField("history")
        for item in record.history.item
        if name_of(item).startswith("distributions")
    }
    histogram = {name.rpartition("/")[2]: json.loads(value) for name, value in told.items()}
    if "_type" not in histogram:  # not told in parts
        (histogram,) = [json.loads(value) for value in told.values()]
    assert histogram["_type"] == "histogram"
    assert sum(histogram["values"]) == 4
    assert (histogram["bins"][0], histogram["bins"][-1]) == (3, 9)
    (alert,) = [record.alert for record in first if record.HasField("alert")]
    assert (alert.title, alert.text, alert.level) == ("Worker churn", "step 1: two were lost", "WARN")
    (run,) = [record.run for record in first if record.HasField("run")]
    assert "hpo-trainer" in {item.key: item.value_json for item in run.config.update}["code_version"]


def artifacts(of_part: list[Any]) -> dict[str, Any]:
    """Return the records by type."""
    return {record.artifact.type: record.artifact for record in of_part if record.HasField("artifact")}


def test_checkpoints_are_kept_as_versions_of_one_artifact(offline: tuple[str, list[list[Any]]]) -> None:
    """A deleted checkpoint costs only a line of output."""
    kept = [artifacts(of_part)["checkpoint"] for of_part in offline[1]]
    assert kept[0].name == kept[1].name
    for part, artifact in enumerate(kept):
        assert set(artifact.aliases) == {"latest", f"step-{part}"}
        (entry,) = artifact.manifest.contents
        assert (entry.path, Path(entry.local_path).read_text()) == ("weights", f"those of {part}")
    assert offline[0].count("the checkpoint of step 9 was not uploaded to W&B") == 2


def test_nothing_is_left_in_the_home_directory(offline: tuple[str, list[list[Any]]]) -> None:
    """`wandb sync` on another machine would miss files there."""
    kept = artifacts(offline[1][0])
    assert set(kept) == {"checkpoint", "run_table"}
    for artifact in kept.values():
        assert "/run/wandb/" in artifact.manifest.contents[0].local_path


def test_a_resumed_run_keeps_its_id(offline: tuple[str, list[list[Any]]]) -> None:
    ids = [record.run.run_id for part in offline[1] for record in part if record.HasField("run")]
    assert len(ids) == 2
    assert ids[0] == ids[1]


def test_only_our_lines_are_printed(offline: tuple[str, list[list[Any]]]) -> None:
    lines = offline[0].splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "W&B is offline",
        "the checkpoint of step 9 was not uploaded to W&B",
        "off",
    ] * 2


def test_without_network_or_key_it_is_offline_soon(tmp_path: Path) -> None:
    refused = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0123456789" * 4}
    unreachable = "http://127.0.0.1:9 cannot be reached"
    began = time.monotonic()
    processes = {
        start(tmp_path / "1", "online", refused): unreachable,
        start(tmp_path / "2", "auto", refused): unreachable,
        start(tmp_path / "3", "auto"): "no W&B API key is configured",  # without a prompt for one
    }
    for process, why in processes.items():
        output = finish(process, 60)
        assert f"W&B is offline: {why}" in output
        assert "off: None" in output
    assert time.monotonic() - began < 45  # each alone takes about 4 s
    assert len(list(tmp_path.glob("*/run/wandb/offline-run-*/*.wandb"))) == 3


@pytest.fixture
def hanging_server() -> Iterator[str]:
    """Answers a GET, as any web server would, but never a POST."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def do_POST(self) -> None:
            over.wait(60)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    over.set()
    server.shutdown()


def test_a_hanging_server_cannot_hold_the_run(tmp_path: Path, hanging_server: str) -> None:
    hanging = {"WANDB_BASE_URL": hanging_server, "WANDB_API_KEY": "0123456789" * 4}
    gives_up = start(tmp_path / "1", "online", hanging, init_timeout_s=1, finish_timeout_s=60)
    killed = start(tmp_path / "2", "auto", hanging, init_timeout_s=60, finish_timeout_s=5)
    output = finish(gives_up, 25)  # wandb's telemetry would take 30 s more
    assert "W&B is offline: CommError" in output
    assert "off: None" in output
    output = finish(killed, 40)
    assert output.splitlines() == [
        "W&B is off: it did not finish within 5 s. metrics.jsonl has all metrics.",
        "off: it did not finish within 5 s",
    ]


class BrokenRun:
    """Fails at some call like the network, with an error that is not wandb's own."""

    def __init__(self, failing: str) -> None:
        self.calls: list[str] = []
        self._failing = failing
        self.summary = self

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self._failing:
            raise ConnectionResetError("peer is gone\nfor good")

    def log(self, row: dict[str, Any]) -> None:
        self._call("log")

    def alert(self, title: str, text: str, level: str) -> None:
        self._call(f"alert {title}")

    def update(self, values: dict[str, Any]) -> None:
        self._call("update")

    def finish(self, exit_code: int) -> None:
        self._call(f"finish {exit_code}")


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig.model_validate({"directory": str(tmp_path), "tracking": {"wandb": "offline"}})


@pytest.mark.parametrize(
    ("failing", "calls"),
    [
        ("none", ["log", "log", "update", "finish 0"]),
        ("log", ["log"]),
        ("update", ["log", "log", "update"]),
        ("finish 0", ["log", "log", "update", "finish 0"]),
    ],
)
def test_the_first_error_turns_it_off_with_one_warning(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, failing: str, calls: list[str]
) -> None:
    run = BrokenRun(failing)
    monkeypatch.setattr(WandbSink, "_start", lambda self: run)
    monkeypatch.setattr(WandbSink, "_tear_down", lambda self: None)
    told: list[str] = []
    sink = WandbSink(config, RunDirectory(config.run_directory), told.append)
    sink.log(0, {})
    sink.log(1, {})
    sink.summary({})
    sink.close(finished=True)
    sink.log(2, {})
    assert run.calls == calls
    reason = None if failing == "none" else "ConnectionResetError: peer is gone for good"
    assert sink.off_reason == reason
    assert told == ([] if reason is None else [f"W&B is off: {reason}. metrics.jsonl has all metrics."])


def test_the_trainer_does_not_wait_for_a_slow_start(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_sink, "QUEUE_LIMIT", 10)
    started = threading.Event()
    run = BrokenRun("none")

    def slow(self: WandbSink) -> BrokenRun:
        started.wait(30)
        return run

    monkeypatch.setattr(WandbSink, "_start", slow)
    monkeypatch.setattr(WandbSink, "_tear_down", lambda self: None)
    told: list[str] = []
    sink = WandbSink(config, RunDirectory(config.run_directory), told.append)
    began = time.monotonic()
    for step in range(1000):
        sink.log(step, {})
    assert time.monotonic() - began < 1
    started.set()
    sink.close(finished=False)
    assert run.calls == ["log"] * 10 + ["finish 1"]
    assert len(told) == 1
    assert "does not keep up" in told[0]


def test_a_stall_is_reported_once_and_the_end_is_no_stall(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_sink, "LOOK_FOR_STALLS_S", 0.01)
    monkeypatch.setattr(alerts, "LEAST_STALL_S", 0.0)
    monkeypatch.setattr(alerts, "STALL_FACTOR", 0.0)
    run, told = BrokenRun("none"), threading.Event()
    monkeypatch.setattr(WandbSink, "_start", lambda self: run)
    monkeypatch.setattr(WandbSink, "_tear_down", lambda self: None)
    sink = WandbSink(config, RunDirectory(config.run_directory), lambda text: told.set())
    sink.log(1, {})
    assert told.wait(30)
    sink.log(config.steps, {})
    sink.alert(Alert("the end", ""))
    sink.close(finished=True)
    assert run.calls == ["log", "alert Stall", "log", "alert the end", "finish 0"]


def test_the_id_is_that_of_the_run_directory_else_of_the_checkpoint_else_new(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WandbSink, "_start", lambda self: None)
    monkeypatch.setattr(WandbSink, "_tear_down", lambda self: None)
    run = RunDirectory(config.run_directory)

    def id_of(resumed_id: str | None) -> str | None:
        sink = WandbSink(config, run, pytest.fail, resumed_id=resumed_id)
        sink.close(finished=True)
        return sink.run_id

    new, newer = id_of(None), id_of(None)
    assert new
    assert newer
    assert new != newer
    assert id_of("from-checkpoint") == "from-checkpoint"
    run.wandb.mkdir(parents=True)
    run.wandb_run_id_file.write_text("kept\n")
    assert id_of("from-checkpoint") == id_of(None) == "kept"


@pytest.mark.parametrize("content", [b"caf\xe9\n", b"a\0b\n", b"two words\n", b"a/b\n", b"1" * 400])
def test_what_is_no_id_is_refused(config: RunConfig, content: bytes) -> None:
    run = RunDirectory(config.run_directory)
    run.wandb.mkdir(parents=True)
    run.wandb_run_id_file.write_bytes(content)
    with pytest.raises(RefusedError, match="wandb/run_id"):
        WandbSink(config, run, pytest.fail)


def test_off_starts_nothing(config: RunConfig) -> None:
    off = RunConfig.model_validate({"tracking": {"wandb": "disabled"}})
    threads = threading.active_count()
    sink = WandbSink(off, RunDirectory(off.run_directory), pytest.fail, resumed_id="abc")
    assert sink.run_id is None
    sink.log(0, {})
    sink.close(finished=True)
    assert threading.active_count() == threads


def test_importing_tracking_imports_nothing_heavy() -> None:
    code = "import sys, cluster.tracking; print(sorted({'wandb', 'torch', 'ray', 'vllm'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=PROJECT) == "[]\n"
