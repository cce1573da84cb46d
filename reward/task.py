"""What a task is: problems, how a model is asked, and how its answer is judged. Torch-free.

To add one, write a file `reward/NAME/task.py` with a class that has this shape, named by `TASK = TheClass`, and a test.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel

from cluster.core.types import IndexedVerdicts, Split, Verdict

STREAMS: dict[Split, str] = {"train": "train", "eval": "held_out"}
"""What seeds the random numbers of each split. Another name would draw other problems, and old evaluations could not be
compared with new ones."""
ChatMessages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Example:
    """Two responses to a problem, to show what its verifier takes and what not."""

    correct: str
    incorrect: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A problem of a task whose problems are the user's, to show what they look like: `sample` of its class."""

    options: dict[str, Any]
    problem: Any
    example: Example


class Task(Protocol):
    """Problems may be any picklable value; only the task that made them looks inside."""

    Options: ClassVar[type[BaseModel]]
    """The schema of `task.options`. Unknown keys must be refused (`extra="forbid"`)."""

    def __init__(self, options: Any) -> None: ...

    def problems(self, split: Split) -> Sequence[Any]:
        """All problems of a split, in an order that never changes. The splits have nothing in common.

        Raises:
            ValueError: the options leave nothing to ask.
        """
        ...

    def render(self, problem: Any) -> str | ChatMessages:
        """The question: plain text, or chat messages for the model's own template."""
        ...


@runtime_checkable
class LocalTask(Task, Protocol):
    """A task with a verifier of its own, which runs in processes here (`reward/sandbox`)."""

    def verify(self, problem: Any, response: str) -> Verdict:
        """VerifierRunner a response. May raise: that is a verdict of its own, never a 0."""
        ...


@runtime_checkable
class GeneratedTask(LocalTask, Protocol):
    """A task that makes its problems itself, and so can show how they are answered."""

    def example(self, problem: Any) -> Example:
        """A response that is right and one that is wrong, for `launch.py tasks`."""
        ...


@runtime_checkable
class CategorisedTask(Protocol):
    """A task whose problems are of several kinds: evaluations are broken down by them."""

    def category(self, problem: Any) -> str | None:
        """What kind of problem it is, in a word or two. None: it is of no kind."""
        ...


@runtime_checkable
class NotedTask(Protocol):
    """A task that reads its problems, and may have left some out."""

    def notes(self) -> Sequence[str]:
        """What was left out, and why, in a line each. Shown by `launch.py check`."""
        ...


@runtime_checkable
class LoadedTask(Protocol):
    """A task whose verifier has to be loaded first."""

    def load_verifier(self) -> None:
        """Called in each verifier process when it starts. May raise: then there are no verdicts, and no run."""
        ...


@runtime_checkable
class BatchTask(LocalTask, Protocol):
    """A task whose verifier may take many responses at a time."""

    batched: bool

    def verify_batch(self, problems: Sequence[Any], responses: Sequence[str]) -> Iterator[IndexedVerdicts]:
        """The verdicts as they come, one for each response, if `batched`."""
        ...


class Scorer(Protocol):
    """What gives the verdicts."""

    async def start(self) -> None:
        """Raises RuntimeError if there can be no verdicts; the message says why."""
        ...

    def score(self, asked: Sequence[tuple[Any, str]]) -> AsyncIterator[IndexedVerdicts]:
        """The verdicts on problems and responses as they come, one for each. Failures are verdicts too."""
        ...

    async def close(self) -> None: ...


@runtime_checkable
class RemoteTask(Task, Protocol):
    """A task whose verdicts come from somewhere else, without a verifier process here."""

    def scorer(self, trial: bool) -> Scorer:
        """`trial`: for a single question before the run, whose answer is waited for.

        Raises:
            ValueError: the options do not say where the verdicts come from.
        """
        ...


def shown(prompt: str | ChatMessages, characters: int = 400) -> str:
    """A prompt on one line for a person, its middle left out where it is long."""
    text = prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
    half = characters // 2
    return repr(text if len(text) <= characters else f"{text[:half]} … {text[-half:]}")
