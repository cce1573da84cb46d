"""The token that `launch.py scale` sends: to the address that its run has recorded, and to others only if asked."""

from __future__ import annotations

import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue

import pytest

from cluster.core.config import RunConfig
from cluster.run_state.run_directory import RunDirectory
from cluster.runtime.auth import MODE_VARIABLE, TOKEN_VARIABLES
from tests import PROJECT

TOKEN = "planted4" * 5
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, SETTINGS = 1, 4
"""Types of HTTP/2 frames."""


class Recorder(socketserver.ThreadingTCPServer):
    """A server in the place of Ray's. It lets a client begin to speak HTTP/2, and keeps the headers of its calls."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Connection)
        self.address = f"127.0.0.1:{self.server_address[1]}"
        self.received: Queue[bytes] = Queue()


class Connection(socketserver.StreamRequestHandler):
    server: Recorder

    def handle(self) -> None:
        self.rfile.read(len(PREFACE))
        self.wfile.write(bytes([0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]))
        while head := self.rfile.read(9):
            payload = self.rfile.read(int.from_bytes(head[:3], "big"))
            if head[3] == HEADERS:
                self.server.received.put(payload)


@pytest.fixture
def stranger() -> Iterator[Recorder]:
    with Recorder() as recorder:
        threading.Thread(target=recorder.serve_forever, args=(0.05,), daemon=True).start()
        yield recorder
        recorder.shutdown()


@pytest.mark.parametrize(
    ("recorded", "words", "mode", "sent"),
    [
        (True, (), {}, True),
        (False, ("--address", "STRANGER"), {MODE_VARIABLE: "token"}, False),
        (False, ("--address", "STRANGER", "--send-token"), {}, True),
    ],
    ids=["recorded", "other", "other, asked for"],
)
def test_only_the_recorded_address_receives_the_token(
    tmp_path: Path,
    stranger: Recorder,
    recorded: bool,
    words: tuple[str, ...],
    mode: dict[str, str],
    sent: bool,
) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    directory.write_config(RunConfig(name="run", directory=tmp_path))
    directory.ray_address_file.write_text(stranger.address if recorded else "127.0.0.1:1")
    given = [stranger.address if word == "STRANGER" else word for word in words]
    clean = {
        name: value for name, value in os.environ.items() if name not in (MODE_VARIABLE, *TOKEN_VARIABLES)
    }
    command = subprocess.Popen(
        [sys.executable, PROJECT / "launch.py", "scale", directory.path, "--rollout-workers", "2", *given],
        env=clean | mode | {"RAY_AUTH_TOKEN": TOKEN},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        calls = [stranger.received.get(timeout=120)]
    finally:
        command.kill()  # Ray would try for minutes
        command.wait()
    while True:
        try:
            calls.append(stranger.received.get_nowait())
        except Empty:
            break
    assert any(TOKEN.encode() in call for call in calls) is sent, calls
