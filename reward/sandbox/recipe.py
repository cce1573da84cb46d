"""What a verifier process is told when it starts, and the limits that it works under."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from cluster.core.types import Verdict


class VerifierRunner(Protocol):
    """What a recipe makes in the process. Whatever it raises is the verdict "error", with the exception as reason."""

    batched: bool
    """Whether `score_batch` is to be called in place of `judge`."""

    def score(self, problem: Any, response: str) -> Verdict: ...

    def score_batch(
        self, problems: Sequence[Any], responses: Sequence[str]
    ) -> Iterator[Sequence[tuple[int, Verdict]]]:
        """Verdicts as they come, each with the place of its response. Those that are missing in the end, or when it
        raises, are judged by a call of their own."""
        ...


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a process makes its judge: it calls `factory`, `"module:function"`, with `arguments` (picklable)."""

    factory: str
    arguments: tuple[Any, ...] = ()
    search_path: tuple[str, ...] = ()
    """Directories that modules are looked for in, besides those of `sys.path`."""

    def make(self) -> VerifierRunner:
        module, _, function = self.factory.partition(":")
        return getattr(import_module(module), function)(*self.arguments)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a verifier may take before its process is killed and replaced."""

    timeout_s: float = 5.0
    """Of one verdict, counted from when the response begins to be judged."""
    memory_mib: int = 1024
    """Data (heap, private mappings) of one process, with all that it imported. The interpreter alone takes 40 MiB."""
    child_processes: int = 64
    """That one verdict may have running at a time."""
    recycle_after: int = 100_000
    """Verdicts. Then a new process takes the place of the old one, with whatever that has leaked."""
    start_timeout_s: float = 60.0
    """Until the recipe's judge is there: imports take their time."""
