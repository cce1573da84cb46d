"""Parts of the GPU check that fail, for tests/test_gpu_check.py. Standard library only, so that they start quickly."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from benchmarks.gpu_check.findings import Findings, NotRunError, Settings


def sound(settings: Settings, findings: Findings) -> None:
    findings.figure("answer", 42)
    findings.check("the answer is known", True, "42", "Ask again.")


def failing(settings: Settings, findings: Findings) -> None:
    findings.check("this holds", True, "1 of 1", "Nothing.")
    findings.check("that holds", False, "0 of 1", "Turn it off.")


def raising(settings: Settings, findings: Findings) -> None:
    findings.begin("the second step")
    raise RuntimeError("the device is lost")


def dying(settings: Settings, findings: Findings) -> None:
    findings.begin("the third step")
    os._exit(3)


def obstructed(settings: Settings, findings: Findings) -> None:
    raise NotRunError("there is one device only")


def hanging(settings: Settings, findings: Findings) -> None:
    """Start a process that leaves this one's group, and hang with it."""
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    findings.figure("child", sleeper.pid)
    findings.begin("waiting for a device")
    time.sleep(600)


def leaving(settings: Settings, findings: Findings) -> None:
    """End, and leave a process behind."""
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    findings.figure("child", sleeper.pid)
