"""Real runs whose verifier says whatever a function or a service can say. They finish, and their files are whole."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.configuration.loading import load_config
from cluster.run_state.run_directory import RunDirectory
from cluster.tracking.jsonl import read_metrics
from cluster.tracking.transcripts import read_transcript
from tests import PROJECT

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

PLANTED = {
    "WANDB_API_KEY": "planted0" * 5,
    "HF_TOKEN": "hf_planted1planted1",
    "MY_SECRET": "planted2planted2",
}
SCORING = '''
import os, zlib

def score(problem, response):
    """Everything that a function can say, by chance."""
    match zlib.crc32(f"{problem['prompt']} {response}".encode()) % 8:
        case 0: return {"reward": 1e300, "outcome": "incorrect"}
        case 1: return {"reward": -1e300, "answer": "half \\ud800 of a pair"}
        case 2: return {"reward": 1.0, "reason": "\\udfff" + "long " * 1_000_000}
        case 3: return {"reward": 0.5, "reason": str(dict(os.environ))}
        case 4: return 10 ** 400
        case 5: return {"reward": 5e-324, "answer": "\\x1b[31m\\0"}
        case 6: return float("nan")
    return 1.0
'''
REPLIES = [
    b'{"reward": 1e300}',
    b'{"reward": -1e300, "answer": "\\ud800"}',
    b'{"reward": 1, "reason": "\\udfff\\u0000\\u001b[31m"}',
    b'{"reward": 1' + b"0" * 400 + b"}",
    b'{"reward": 1e400}',
    b'{"reward": NaN}',
    b'{"reward": 0.5, "reason": "' + b"\xff\xfe" + b'"}',
    b'{"reward": 0.5}',
    b"[" * 100_000,
]


@contextmanager
def service() -> Iterator[str]:
    """Serve the replies one after the other."""
    count = iter(range(1_000_000_000))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = REPLIES[next(count) % len(REPLIES)]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/verify"
    finally:
        server.shutdown()
        server.server_close()


def launch(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, from which verifiers are imported."""
    return subprocess.run(
        [sys.executable, str(PROJECT / "launch.py"), *arguments],
        cwd=folder,
        env=os.environ | PLANTED | {"PYTHONPATH": str(PROJECT), "WANDB_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def own_data(folder: Path, **options: Any) -> dict[str, Any]:
    """Return a task whose prompts the tiny model can read."""
    prompts = [f"{a} {b}={a + b}" for a in range(1, 9) for b in range(1, 9)]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return {"data": str(folder / "rows.jsonl"), "style": "plain", "eval_fraction": 0.3, **options}


@pytest.mark.parametrize("task", ["python", "http"])
def test_a_run_survives_whatever_its_verifier_says(
    write_config: Callable[..., Path], tmp_path: Path, task: str
) -> None:
    (tmp_path / "scoring.py").write_text(SCORING)
    with service() as url:
        own = {"url": url} if task == "http" else {"function": "scoring:score"}
        config_file = write_config(
            steps=4,
            task={"name": task, "options": own_data(tmp_path, **own)},
            reward={"max_error_fraction": 0.99},
        )
        finished = launch(tmp_path, "train", str(config_file))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "Traceback" not in finished.stdout + finished.stderr
    directory = RunDirectory(load_config(config_file).config.run_directory)
    rows = list(read_metrics(directory.metrics_file))
    assert [row["step"] for row in rows] == list(range(5))
    for name in ("reward/mean", "objective/loss", "objective/grad_norm"):
        assert all(math.isfinite(row[name]) for row in rows[1:]), name
    assert any(abs(row["reward/mean"]) > 1e200 for row in rows[1:]), (
        "otherwise nothing extreme was learned from"
    )
    assert any(row["reward/error_fraction"] > 0 for row in rows[1:])
    transcripts = list(directory.transcript_file(1).parent.glob("*.jsonl"))
    assert transcripts
    for transcript in transcripts:
        assert list(read_transcript(transcript))
    written = [file for file in directory.path.rglob("*") if file.is_file()]
    for file in written:
        for name, key in PLANTED.items():
            assert key.encode() not in file.read_bytes(), f"{name} is in {file}"


FAILING = """
import zlib

def score(problem, response):
    chance = zlib.crc32(f"{problem['prompt']} {response}".encode()) % 10
    if chance < 3:
        return 1.0
    if chance < 6:
        FAILURE
    return 0.0
"""
FAILURES = {
    "incorrect": "return 0.0",
    "error": 'raise OSError("the planted failure")',
    "nonsense": "return [1]",
}


def test_errors_of_a_verifier_never_improve_an_evaluation(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """The same responses, of which a third is incorrect or without a verdict, give the same numbers."""
    reports = {}
    for name, failure in FAILURES.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "scoring.py").write_text(FAILING.replace("FAILURE", failure))
        config_file = write_config(
            task={"name": "python", "options": own_data(folder, function="scoring:score")},
            reward={"max_error_fraction": 0.99},
            evaluation={"prompts": 16, "responses_per_prompt": 8},
            directory=str(folder),
        )
        evaluated = launch(folder, "eval", str(config_file), "--json")
        assert evaluated.returncode == 0, evaluated.stderr
        reports[name] = json.loads(evaluated.stdout)
    passed = {name: (report["pass_at_1"], report["pass_at_k"]) for name, report in reports.items()}
    assert 0 < passed["incorrect"][0] < 1
    assert passed == dict.fromkeys(FAILURES, passed["incorrect"])
    failed = {name: report["failed_verdicts"] for name, report in reports.items()}
    assert failed["incorrect"] == 0
    assert failed["error"] == failed["nonsense"] > 10
