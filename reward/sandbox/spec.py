"""The specification of a verifier process: the runner inside it, and the limits on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from cluster.core.types import IndexedVerdicts, Verdict


class VerifierRunner(Protocol):
    """The object inside a verifier process that scores responses.

    An exception becomes a verdict with the outcome "error" and the exception as its reason.
    """

    batched: bool
    """True if `score_batch` is to be called in place of `score`."""

    def score(self, problem: Any, response: str) -> Verdict: ...

    def score_batch(self, problems: Sequence[Any], responses: Sequence[str]) -> Iterator[IndexedVerdicts]:
        """Yield verdicts as they become available.

        Responses without a verdict at the end, or after an exception, are scored again by single calls of `score`.
        """
        ...


@dataclass(frozen=True, slots=True)
class RunnerSpec:
    """The instructions to make a runner in a new process: call `factory` with `arguments`."""

    factory: str
    """A function, as `module:function`."""
    arguments: tuple[Any, ...] = ()
    """The factory's arguments (picklable)."""
    search_path: tuple[str, ...] = ()
    """Directories that are searched for modules, in addition to `sys.path`."""

    def make(self) -> VerifierRunner:
        """Return the runner."""
        module, _, function = self.factory.partition(":")
        runner: VerifierRunner = getattr(import_module(module), function)(*self.arguments)
        return runner


@dataclass(frozen=True, slots=True)
class Limits:
    """The resources that a verifier may use before its process is killed and replaced."""

    timeout_s: float = 5.0
    """The time for one verdict, from the moment its computation begins."""
    memory_mib: int = 1024
    """The memory of one process and its descendants together, imports and shared memory included. The interpreter alone
    takes 40 MiB. Each process has this limit on its data memory (heap, private mappings), and on its files."""
    child_processes: int = 64
    """The number of child processes that may run at the same time."""
    recycle_after: int = 100_000
    """The number of verdicts after which a process is replaced, which frees whatever it has leaked."""
    start_timeout_s: float = 60.0
    """The time until the runner is made, including slow imports."""
