"""What a machine has. Runs in any process on it: this command's, or a task's on a node of a cluster."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from learner.engine.build_lock import operator_folder

ENGINES_TIMEOUT_S = 180.0
_GIB = 2**30
_PROBE = """
import json, torch
from vllm.platforms import current_platform
print(json.dumps({"torch_gpus": torch.cuda.device_count(), "torch_cuda": torch.version.cuda,
                  "vllm_platform": current_platform.device_type}))
"""


@dataclass(frozen=True, slots=True)
class Engines:
    """What torch and vLLM say when they are imported."""

    torch_gpus: int = 0
    torch_cuda: str | None = None
    """The CUDA that torch was built for; None is a build for CPU."""
    vllm_platform: str = ""
    error: str = ""
    """Why they say nothing."""


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """Sizes are what is free, in GiB."""

    host: str
    python: str
    versions: dict[str, str | None]
    """Of the packages that were asked for; None if one is not installed."""
    gpu_devices: int
    engines: Engines
    memory_gib: float
    shared_memory_gib: float
    disk_gib: dict[str, float]
    """By folder."""
    compiler: str | None
    ninja: str | None
    operator_is_built: bool
    operator_is_locked: bool
    open_files: int
    seen: dict[str, bool] = field(default_factory=dict)
    """Whether files are there that somebody asked about."""


def machine_facts(packages: Sequence[str], folders: Sequence[str], files: Sequence[str] = ()) -> MachineFacts:
    """Of the machine that this runs on. Imports torch and vLLM in a process of their own, which takes some seconds."""
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    operator = operator_folder()
    return MachineFacts(
        host=socket.gethostname(),
        python=platform.python_version(),
        versions={package: _version(package) for package in packages},
        gpu_devices=len(list(Path("/dev").glob("nvidia[0-9]*"))),
        engines=_engines(),
        memory_gib=psutil.virtual_memory().available / _GIB,
        shared_memory_gib=shutil.disk_usage("/dev/shm").free / _GIB,
        disk_gib={folder: shutil.disk_usage(_existing(Path(folder))).free / _GIB for folder in folders},
        compiler=shutil.which(os.environ.get("CXX", "c++"), path=programs),
        ninja=shutil.which("ninja", path=programs),
        operator_is_built=any(operator.glob("*.so")),
        operator_is_locked=(operator / "lock").exists(),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        seen={file: Path(file).exists() for file in files},
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _engines() -> Engines:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=ENGINES_TIMEOUT_S,
            env=os.environ | {"VLLM_LOGGING_LEVEL": "ERROR"},
        )
        if done.returncode:
            return Engines(error=(done.stderr.strip().splitlines() or ["it says nothing"])[-1][:200])
        return Engines(**json.loads(done.stdout.strip().splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return Engines(error=f"no answer within {ENGINES_TIMEOUT_S:g} s")


def _existing(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.exists())
