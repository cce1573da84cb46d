"""The settings that each part is given, and the findings that it returns. Standard library only."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Device = Literal["cuda", "cpu"]
Verdict = Literal["passed", "failed", "not run", "timed out"]


class NotRunError(Exception):
    """A part cannot run here. The message is the reason."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one run of the check."""

    device: Device
    smoke: bool
    """True for tiny sizes, which show that a part runs, and say nothing about memory and speed."""
    scratch: str
    """A directory for models and weights, which is removed at the end."""

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"


@dataclass(frozen=True, slots=True)
class Check:
    """One property that was tested."""

    name: str
    holds: bool
    found: str
    """The value that was measured or read."""
    remedy: str
    """The advice if the property does not hold."""


@dataclass
class Findings:
    """The findings of a part. With a `path`, every addition is saved at once, also those of a part that hangs later."""

    path: Path | None = None
    doing: str = ""
    """The step that the part is at, which is reported if it hangs or dies."""
    complete: bool = False
    error: str = ""
    """The exception that ended the part."""
    obstacle: str = ""
    """The reason why the part could not run."""
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    """Values, or tables as lists of rows, by their titles."""
    notes: list[str] = field(default_factory=list)

    def check(self, name: str, holds: bool, found: str, remedy: str) -> bool:
        """Record the outcome of a test. Return `holds`."""
        self.checks.append(Check(name, bool(holds), found, remedy))
        self.save()
        return bool(holds)

    def figure(self, title: str, value: Any) -> None:
        self.figures[title] = value
        self.save()

    def row(self, title: str, row: Mapping[str, Any]) -> None:
        """Add a row to the table `title`."""
        self.figures.setdefault(title, []).append(dict(row))
        self.save()

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.save()

    def begin(self, step: str) -> None:
        """Say which step begins now."""
        self.doing = step
        print(f"-- {step}", flush=True)
        self.save()

    def save(self) -> None:
        if self.path is None:
            return
        values = asdict(self)
        del values["path"]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(values, default=str), encoding="utf-8")
        os.replace(temporary, self.path)

    @classmethod
    def load(cls, path: Path) -> Findings:
        """Return what a part has saved, which is nothing if it died early."""
        if not path.is_file():
            return cls()
        values = json.loads(path.read_text(encoding="utf-8"))
        values["checks"] = [Check(**check) for check in values["checks"]]
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one part, as the report shows it."""

    name: str
    title: str
    verdict: Verdict
    reason: str
    """Why it failed or did not run; empty if it passed."""
    seconds: float
    limit_s: float
    remedies: Sequence[str]
    checks: Sequence[Check]
    figures: Mapping[str, Any]
    notes: Sequence[str]
    log: str
    """The file with the output of the part's process, beside the report."""
    log_tail: Sequence[str] = ()
    """The last lines of the log, if the part failed or timed out."""
