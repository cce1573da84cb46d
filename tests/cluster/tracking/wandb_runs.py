"""W&B runs in processes of their own, and the records of their `.wandb` files."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from tests import PROJECT

SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
from cluster.tracking.alerts import Alert
from cluster.core.config import RunConfig
from cluster.run_state.run_directory import RunDirectory
from cluster.tracking.wandb_sink import WandbSink

directory, mode, deadlines, runs = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
config = RunConfig.model_validate({"directory": directory, "seed": 7, "tracking": {
    "wandb": mode, "wandb_project": "laws", "wandb_group": "a", "wandb_tags": ["t1", "t2"],
    "wandb_checkpoints": True}})
run = RunDirectory(config.run_directory)
run.create()
hooks = sys.excepthook, sys.exit
known_id = None
for part in range(runs):  # the second is a resumed run, which knows the id only from its checkpoint
    run.wandb_run_id_file.unlink(missing_ok=True)
    sink = WandbSink(config, run, lambda text: print(text, flush=True), resumed_id=known_id, **deadlines)
    known_id = sink.run_id
    for step in range(2):
        sink.log(2 * part + step, {"reward/mean": 0.125 + part, "eval/pass_at_1": float("nan")},
                 {"response_length": np.array([3, 4, 4, 9]), "advantages": np.array([])})
    sink.alert(Alert("Worker churn", "step 1: two were lost"))
    weights = Path(directory, f"checkpoint_{part}", "weights")
    weights.parent.mkdir()
    weights.write_text(f"those of {part}")
    sink.checkpoint(part, weights.parent)
    sink.checkpoint(9, Path(directory, "deleted meanwhile"))
    sink.table(part, [[part, "2 + 2?", "four", "correct", 1.0, "equals 4"]])
    sink.summary({"pass_at_1": {"last": 0.625}})
    sink.close(finished=True)
    print("off:", sink.off_reason)
assert (sys.excepthook, sys.exit) == hooks
"""


def clean_environment(home: Path) -> dict[str, str]:
    """Return the environment of a user without a W&B account."""
    home.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "NETRC"))}
    return kept | {
        "HOME": str(home), "NETRC": str(home / "no-netrc"), "PYTHONPATH": str(PROJECT), "NO_PROXY": "127.0.0.1"
    }  # fmt: skip


def start(
    directory: Path,
    mode: str,
    environment: Mapping[str, str] | None = None,
    runs: int = 1,
    **deadlines: float,
) -> subprocess.Popen[str]:
    directory.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(directory), mode, json.dumps(deadlines), str(runs)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=directory,
        env=clean_environment(directory / "home") | dict(environment or {}),
    )


def finish(process: subprocess.Popen[str], timeout_s: float) -> str:
    """Return the output of a process that must exit with 0, in time, and leave no wandb process."""
    output, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, output
    assert orphans(process.pid) == []
    return output


def orphans(pid: int) -> list[list[str]]:
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [command for command in commands if command[-1:] == [str(pid)] and "wandb-core" in command[0]]


def records(file: Path) -> Iterator[Any]:
    """Yield the protobuf records of a `.wandb` file: a LevelDB log after a header of 7 bytes.

    wandb 0.31 has its reader in its Go process only. Format: github.com/google/leveldb, doc/log_format.md.
    """
    from wandb.proto import wandb_internal_pb2

    block, frame = 32768, struct.Struct("<IHB")  # crc, length, type (1 whole, 2 first, 3 middle, 4 last)
    content = file.read_bytes()
    assert content[:4] == b":W&B"
    position, data = 7, b""
    while position + frame.size <= len(content):
        left = block - position % block
        if left < frame.size:  # no frame starts in the last 6 bytes of a block
            position += left
            continue
        _, length, kind = frame.unpack_from(content, position)
        assert kind in (1, 2, 3, 4), (position, kind)
        position += frame.size
        data += content[position : position + length]
        position += length
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(data)
            data = b""


def name_of(item: Any) -> str:
    return item.key or "/".join(item.nested_key)
