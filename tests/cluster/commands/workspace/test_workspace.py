"""`launch.py workspace` saves the catalogue's sections and charts once, or prints one line with the reason in time.

The server is simulated on this machine; the client is wandb's own.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.commands.workspace.view import definition
from cluster.metrics.catalogue import SECTIONS
from launch import app
from tests import PROJECT
from tests.cluster.tracking.wandb_runs import clean_environment

KEY = "0123456789" * 4


def test_the_definition_matches_the_catalogue() -> None:
    workspace = definition("someone", "hpo-trainer")
    charts = [
        (section.name, panel.title, tuple(panel.y), panel.x)
        for section in workspace.sections
        for panel in section.panels
    ]
    assert charts == [
        (section.title, chart.title, chart.keys, "step") for section in SECTIONS for chart in section.charts
    ]
    assert not workspace.auto_generate_panels, "what no chart shows is not in the way"
    for section in workspace.sections:
        layout = section.layout_settings
        assert layout.columns * layout.rows >= len(section.panels), "no chart is on a second page"


@dataclass
class Wandb:
    """A simulated W&B with one user and the views of one project. It accepts the key `accepts`."""

    address: str = ""
    accepts: str = KEY
    answers: bool = True
    has_project: bool = True
    views: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The views by name."""
    over: threading.Event = field(default_factory=threading.Event)

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertView" in query:
            name, new = variables["name"], "id" not in variables
            assert new or self.views[name]["id"] == variables["id"]
            assert not new or name not in self.views, "a second view of the same name"
            view = {**variables, "id": f"id of {name}"}
            self.views[name] = view
            return {"upsertView": {"view": {"id": view["id"], "name": name}, "inserted": new}}
        if "allViews" in query:
            found = self.views.get(variables["view"])
            edges = [{"node": {"id": found["id"]}}] if found else []
            return {"project": {"allViews": {"edges": edges}} if self.has_project else None}
        return {"viewer": {"id": "1", "entity": "someone", "username": "someone", "flags": "{}"}}


@pytest.fixture
def wandb() -> Iterator[Wandb]:
    played = Wandb()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not played.answers:
                played.over.wait(60)
                return
            given = base64.b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode()
            status, answer = 401, {"errors": [{"message": "user is not logged in"}]}
            if given == f"api:{played.accepts}":
                status, answer = 200, {"data": played.answer(asked["query"], asked.get("variables") or {})}
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    played.address = f"http://127.0.0.1:{server.server_port}"
    yield played
    played.over.set()
    server.shutdown()
    server.server_close()


def workspace(
    home: Path, address: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does. WANDB_HTTP_TIMEOUT is in seconds."""
    return subprocess.run(
        [sys.executable, PROJECT / "launch.py", "workspace", *arguments],
        cwd=home,
        env=clean_environment(home)
        | {"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY, "WANDB_HTTP_TIMEOUT": "3"}
        | environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=90,
        check=False,
    )


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "config.yaml"
    file.write_text("tracking: {wandb_project: laws}\n")
    return str(file)


def test_the_view_is_saved_once_and_then_updated(tmp_path: Path, wandb: Wandb, config: str) -> None:
    saved = workspace(tmp_path, wandb.address, config)
    assert (saved.returncode, saved.stdout) == (0, f"saved: {wandb.address}/someone/laws?nw=hpotrainer\n"), (
        saved
    )
    again = workspace(
        tmp_path, wandb.address, str(tmp_path), "--group-by", "objective.name", WANDB_MODE="offline"
    )
    assert (again.returncode, again.stdout) == (0, saved.stdout), again
    (view,) = wandb.views.values()
    assert (view["entityName"], view["projectName"], view["type"]) == ("someone", "laws", "project-view")
    section = json.loads(view["spec"])["section"]
    arrived = [
        (part["name"], panel["config"]["chartTitle"], panel["config"]["metrics"], panel["config"]["xAxis"])
        for part in section["panelBankConfig"]["sections"]
        for panel in part["panels"]
    ]
    assert arrived == [
        (part.title, chart.title, list(chart.keys), "step") for part in SECTIONS for chart in part.charts
    ]
    (runs,) = section["runSets"]
    assert runs["grouping"] == [{"section": "config", "name": "objective.value.name"}]


def test_every_failure_is_one_line(tmp_path: Path, wandb: Wandb, config: str) -> None:
    def said(address: str = wandb.address, **environment: str) -> str:
        began = time.monotonic()
        done = workspace(tmp_path, address, config, **environment)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert time.monotonic() - began < 40
        (line,) = done.stderr.splitlines()
        return line

    assert said("http://127.0.0.1:9").startswith("http://127.0.0.1:9 cannot be reached (")
    assert said(WANDB_API_KEY="").endswith("is configured: run wandb login, or set WANDB_API_KEY")
    wandb.has_project = False
    assert said().startswith(f"{wandb.address} has no project someone/laws: ")
    wandb.accepts = "another"
    assert said().startswith(f"{wandb.address} does not accept the API key (")
    wandb.answers = False
    assert said().startswith(f"{wandb.address} did not verify the API key (")
    assert wandb.views == {}


def test_a_server_that_does_not_answer_is_abandoned_at_the_deadline(tmp_path: Path, wandb: Wandb) -> None:
    wandb.answers = False
    code = """
from cluster.commands.workspace import view
view.DEADLINE_S = 4.0
try:
    view.save("laws")
except view.WorkspaceNotSavedError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=clean_environment(tmp_path)
        | {"WANDB_BASE_URL": wandb.address, "WANDB_API_KEY": KEY, "WANDB_HTTP_TIMEOUT": "60"},
        capture_output=True,
        text=True,
        timeout=40,
        check=True,
    )
    assert (done.stdout, done.stderr) == (f"{wandb.address} did not answer within 4 s; try again later\n", "")


def test_a_missing_package_is_named(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "cluster.commands.workspace.view", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb_workspaces"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    result = CliRunner().invoke(app, ["workspace", config])
    assert result.exit_code == 2, result.output
    assert "wandb-workspaces is not installed" in result.stderr


def test_an_unknown_setting_is_refused(config: str) -> None:
    result = CliRunner().invoke(app, ["workspace", config, "--group-by", "objective.nam"])
    assert result.exit_code == 2
    assert "no such setting" in result.stderr
