"""The directory of this project (with `launch.py` and the packages), and the version of its code."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GIT_TIMEOUT_S = 5.0


def code_version(root: Path = ROOT) -> str:
    """Return the version, commit and state of the code: `hpo-trainer 0.1.0 (1a2b3c4d5e6f, changed)`.

    Without git, or outside a working copy, it is the version alone.
    """
    try:
        release = f"hpo-trainer {version('hpo-trainer')}"
    except PackageNotFoundError:
        release = "hpo-trainer"
    commit = _git(root, "rev-parse", "--short=12", "HEAD") if (root / ".git").exists() else None
    if commit is None:
        return release
    changed = ", changed" if _git(root, "status", "--porcelain", "--untracked-files=no") else ""
    return f"{release} ({commit}{changed})"


def _git(root: Path, *arguments: str) -> str | None:
    """Return git's output; None if git is missing, fails or does not answer."""
    try:
        process = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=GIT_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() if process.returncode == 0 else None
