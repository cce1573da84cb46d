"""The checks of ports and keys, and the output and the exit code of the command."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from typer.testing import CliRunner

from cluster.commands.doctor import examination
from cluster.commands.doctor.assessment import Finding
from launch import app

cli = CliRunner()


def test_a_port_in_use_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(examination, "HEAD_PORT", taken.getsockname()[1])
        first = next(iter(examination.ports()))
    assert first.level == "warn"
    assert "--port OTHER" in first.fix
    assert next(iter(examination.ports())).level == "ok"


@pytest.fixture
def strict_server() -> Iterator[str]:
    """Start a server in place of W&B that accepts no key."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.dumps(
                {"errors": [{"message": "permission denied"}], "data": {"viewer": None}}
            ).encode()
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def wandb_says(home: Path, **variables: str) -> Finding:
    """Check the login in a separate process, because wandb caches its settings."""
    code = (
        "import json, dataclasses; from cluster.commands.doctor.examination import wandb_login; "
        "print(json.dumps(dataclasses.asdict(wandb_login())))"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=kept | {"HOME": str(home), **variables},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return Finding(**json.loads(done.stdout.splitlines()[-1]))


def test_a_key_that_is_no_longer_accepted(tmp_path: Path, strict_server: str) -> None:
    key = "0123456789" * 4
    finding = wandb_says(tmp_path, WANDB_API_KEY=key, WANDB_BASE_URL=strict_server)
    assert (finding.level, finding.fix) == ("fail", "wandb login --relogin"), finding
    assert key not in finding.found


def test_an_unreachable_server_is_only_a_warning(tmp_path: Path) -> None:
    finding = wandb_says(tmp_path, WANDB_API_KEY="0" * 40, WANDB_BASE_URL="http://127.0.0.1:1")
    assert finding.level == "warn"
    assert "cannot be reached" in finding.found


@pytest.mark.parametrize(("level", "exit_code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_the_exit_code_says_whether_something_must_be_fixed(
    monkeypatch: pytest.MonkeyPatch, level: str, exit_code: int
) -> None:
    finding = Finding(level, "what", "said [bold]", "fix it")  # type: ignore[arg-type]
    monkeypatch.setattr(examination, "examine", lambda *_: iter([("here", finding)]))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    result = cli.invoke(app, ["doctor"])
    assert result.exit_code == exit_code
    assert "said [bold]" in result.stdout
    assert "→ fix it" in result.stdout
    result = cli.invoke(app, ["doctor", "--json"])
    assert result.exit_code == exit_code
    assert json.loads(result.stdout) == [
        {"where": "here", "level": level, "what": "what", "found": "said [bold]", "fix": "fix it"}
    ]
