"""Where this project lies: the directory that holds `launch.py` and the packages."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
