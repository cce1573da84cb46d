"""Run each part in a process of its own, kill it with its children at its time limit, and collect its outcome.

Standard library only: the packages that the parts need may be missing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu_check.findings import Findings, Outcome, Settings, Verdict
from benchmarks.gpu_check.parts import Part

PROJECT = Path(__file__).parents[2]
MARK = "GPU_CHECK_PROCESS"
"""An environment variable whose value is unique to one part. Every process that the part starts inherits it, also those
that leave its process group."""
KILL_TIMEOUT_S = 20.0
"""The longest wait until the processes of a part are gone after they were killed."""
GRACE_S = 5.0
"""The time that processes have to end by themselves after their part has ended."""
LOG_LINES = 15
"""The number of lines of a log that the report repeats."""


def run_parts(parts: Sequence[Part], settings: Settings, output: Path) -> list[Outcome]:
    """Run the parts one after the other. Logs and findings are written to the directory `output`."""
    outcomes = []
    for part in parts:
        print(f"{part.name}: {part.title} …", flush=True)
        outcomes.append(run_part(part, settings, output))
        print(f"  {summary(outcomes[-1])}", flush=True)
    return outcomes


def summary(outcome: Outcome) -> str:
    reason = f": {outcome.reason}" if outcome.reason else ""
    return f"{outcome.verdict} after {outcome.seconds:.0f} s{reason}"


def run_part(part: Part, settings: Settings, output: Path) -> Outcome:
    """Run one part. Return its outcome, whatever happens in its process."""
    log, saved = output / f"{part.name}.log", output / f"{part.name}.findings.json"
    saved.unlink(missing_ok=True)
    missing = [name for name in part.packages if find_spec(name) is None]
    if missing:
        log.write_text("", encoding="utf-8")
        reason = "; ".join(f"package {name} is not installed" for name in missing)
        return _outcome(part, "not run", reason, 0.0, Findings(), log)
    started = time.monotonic()
    status, left = _run_process(part, settings, log, saved)
    seconds = time.monotonic() - started
    findings = Findings.load(saved)
    saved.unlink(missing_ok=True)
    if left:
        findings.notes.append(f"{left} process(es) that it had started were still alive, and were killed")
    return _outcome(part, *_verdict(part, status, findings), seconds, findings, log)


def _verdict(part: Part, status: int | None, findings: Findings) -> tuple[Verdict, str]:
    """Return the verdict and its reason from the status of the process, which is None after a timeout."""
    at = f" during: {findings.doing}" if findings.doing else ""
    if status is None:
        return "timed out", f"it was killed after {part.limit_s:g} s{at}"
    if findings.obstacle:
        return "not run", findings.obstacle
    if findings.error:
        return "failed", findings.error + at
    if not findings.complete:
        return "failed", f"its process {_end(status)} without a result{at}"
    failed = [check.name for check in findings.checks if not check.holds]
    return ("failed", "; ".join(failed)) if failed else ("passed", "")


def _end(status: int) -> str:
    """Describe the return code of a process."""
    if status >= 0:
        return f"ended with exit code {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def _outcome(
    part: Part, verdict: Verdict, reason: str, seconds: float, findings: Findings, log: Path
) -> Outcome:
    remedies = list(dict.fromkeys(check.remedy for check in findings.checks if not check.holds))
    faulty = verdict in ("failed", "timed out")
    if faulty and not (remedies and findings.complete):
        remedies.append(part.remedy)
    return Outcome(
        name=part.name,
        title=part.title,
        verdict=verdict,
        reason=reason,
        seconds=round(seconds, 1),
        limit_s=part.limit_s,
        remedies=remedies,
        checks=findings.checks,
        figures=findings.figures,
        notes=findings.notes,
        log=log.name,
        log_tail=_tail(log) if faulty and not findings.complete else (),
    )


def _tail(log: Path) -> tuple[str, ...]:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return tuple(line[:300] for line in lines if line.strip())[-LOG_LINES:]


# --- Processes.


def _run_process(part: Part, settings: Settings, log: Path, saved: Path) -> tuple[int | None, int]:
    """Run the part's process. Return its exit status, None if it had to be killed, and the number of processes that
    were left when it ended by itself."""
    mark = uuid.uuid4().hex
    order = {
        "name": part.name,
        "function": part.function,
        "findings": str(saved),
        "limit_s": part.limit_s,
        "settings": asdict(settings),
    }
    search_path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu_check.child", json.dumps(order)],
            cwd=PROJECT,
            env=os.environ | {MARK: mark, "PYTHONPATH": search_path, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process only, which then kills the part
        )
        try:
            status: int | None = process.wait(part.limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            left = 0 if process.poll() is None else _left(mark)
            _kill(mark)
            process.wait(KILL_TIMEOUT_S)
    return status, left


def _left(mark: str) -> int:
    """Return how many marked processes are alive after a time in which they may end by themselves."""
    end = time.monotonic() + GRACE_S
    while (alive := len(marked_processes(mark))) and time.monotonic() < end:
        time.sleep(0.1)
    return alive


def _kill(mark: str) -> None:
    """Kill all marked processes, also those that they start meanwhile.

    Raises:
        TimeoutError: if some of them are still there after `KILL_TIMEOUT_S`.
    """
    end = time.monotonic() + KILL_TIMEOUT_S
    while alive := marked_processes(mark):
        if time.monotonic() > end:
            raise TimeoutError(
                f"processes {alive} are still there {KILL_TIMEOUT_S:g} s after they were killed: the driver may hang; "
                "restart the machine"
            )
        for process_id in alive:
            with suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        time.sleep(0.1)


def marked_processes(mark: str) -> list[int]:
    """Return the ids of the living processes whose environment has the mark. A process that is dead, but whose parent
    has not asked for its exit code, has no environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # It may end at any moment, or belong to another user.
            with suppress(OSError):
                if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found
