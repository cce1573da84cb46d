"""Measure a machine. The code runs in any process on it: that of this command, or a Ray task on a node."""

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

from cluster.configuration.devices import Devices, read_devices, visible_devices
from learner.engine.process_setup import operator_folder

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
    """The devices that torch and vLLM find when they are imported."""

    torch_gpus: int = 0
    torch_cuda: str | None = None
    """The CUDA version that torch was built for, or None for a CPU build."""
    vllm_platform: str = ""
    error: str = ""
    """The reason if one of them cannot be imported."""


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """The facts about one machine. Sizes are free amounts in GiB."""

    host: str
    python: str
    versions: dict[str, str | None]
    """The versions of the requested packages, with None for a missing one."""
    gpu_devices: int
    engines: Engines
    memory_gib: float
    shared_memory_gib: float
    disk_gib: dict[str, float]
    """The free disk space by folder."""
    compiler: str | None
    ninja: str | None
    operator_is_built: bool
    operator_is_locked: bool
    open_files: int
    seen: dict[str, bool] = field(default_factory=dict)
    """The requested files, and True for each that exists on this machine."""
    devices: Devices | None = None
    """The driver and the GPUs; None if there is no driver, or nothing that reads it."""
    visible_devices: str | None = None
    """The value of CUDA_VISIBLE_DEVICES."""


def machine_facts(packages: Sequence[str], folders: Sequence[str], files: Sequence[str] = ()) -> MachineFacts:
    """Measure this machine. A separate process imports torch and vLLM, which takes some seconds."""
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
        devices=read_devices(),
        visible_devices=visible_devices(),
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
            return Engines(
                error=(done.stderr.strip().splitlines() or ["the process printed no error"])[-1][:200]
            )
        return Engines(**json.loads(done.stdout.strip().splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return Engines(error=f"the import did not end within {ENGINES_TIMEOUT_S:g} s")


def _existing(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.exists())
