"""The interface of a task: its problems, its prompts, and the verification of responses. Torch-free.

To add a task, write `reward/tasks/NAME/task.py` with a class of this shape and the line `TASK = TheClass`, and a test.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel

from cluster.core.types import IndexedVerdicts, Split, Verdict
from reward.pace import Pace

STREAMS: dict[Split, str] = {"train": "train", "eval": "held_out"}
"""The words that seed each split's random numbers. They are data: with other words a seed would give other problems,
and new evaluations could not be compared with old ones."""
ChatMessages = list[dict[str, Any]]
"""Messages with a `role` and a `content`. Other fields, such as `tool_calls`, are for the chat template."""


@dataclass(frozen=True, slots=True)
class Example:
    """A correct and an incorrect response to a problem, to show what the verifier accepts."""

    correct: str
    incorrect: str


@dataclass(frozen=True, slots=True)
class Sample:
    """An example problem of a task whose problems come from the user. It is the attribute `sample` of the class."""

    options: dict[str, Any]
    problem: Any
    example: Example


class Task(Protocol):
    """A source of problems. A problem may be any picklable value; only the task itself looks inside."""

    Options: ClassVar[type[BaseModel]]
    """The schema of `task.options`. It must refuse unknown keys (`extra="forbid"`)."""

    def __init__(self, options: Any) -> None: ...

    def problems(self, split: Split) -> Sequence[Any]:
        """Return all problems of a split, always in the same order. The two splits share no problem.

        Raises:
            ValueError: if the options leave no problem.
        """
        ...

    def render(self, problem: Any) -> str | ChatMessages:
        """Return the prompt: plain text, or chat messages for the model's own template."""
        ...


@runtime_checkable
class LocalTask(Task, Protocol):
    """A task with its own verifier, which runs in local verifier processes (`reward/sandbox`)."""

    def verify(self, problem: Any, response: str) -> Verdict:
        """Return the verdict on a response.

        An exception becomes a verdict with the outcome "error", never a reward of 0.
        """
        ...


@runtime_checkable
class GeneratedTask(LocalTask, Protocol):
    """A task that generates its problems, and can therefore show an answer to each."""

    def example(self, problem: Any) -> Example:
        """Return a correct and an incorrect response, for `launch.py tasks`."""
        ...


@runtime_checkable
class SolvedTask(Protocol):
    """A task that knows correct responses, from a solver or from the references in its data."""

    def solution(self, problem: Any) -> str | None:
        """Return a correct response to a problem, or None if none is known or would take long to find."""
        ...


@runtime_checkable
class CategorisedTask(Protocol):
    """A task with several categories of problems. Evaluations report each category."""

    def category(self, problem: Any) -> str | None:
        """Return the category of a problem in a word or two, or None if it has no category."""
        ...


@runtime_checkable
class NotedTask(Protocol):
    """A task that reads its problems from data, and may leave some rows out."""

    def notes(self) -> Sequence[str]:
        """Return one line for each reason to leave rows out. `launch.py check` prints them."""
        ...


@runtime_checkable
class LocatedTask(Protocol):
    """A task that can say where in the data a problem is."""

    def where(self, problem: Any) -> str:
        """Return the location of a problem, such as `data.jsonl:17`."""
        ...


@runtime_checkable
class LoadedTask(Protocol):
    """A task whose verifier has to be loaded before its first use."""

    def load_verifier(self) -> None:
        """Load the verifier. Each verifier process calls this once, when it starts.

        An exception means that nothing can be scored; it stops the run.
        """
        ...


@runtime_checkable
class BatchTask(LocalTask, Protocol):
    """A task whose verifier may take many responses in one call."""

    batched: bool
    """True if `verify_batch` is to be called in place of `verify`."""

    def verify_batch(self, problems: Sequence[Any], responses: Sequence[str]) -> Iterator[IndexedVerdicts]:
        """Yield the verdicts as they become available, one per response."""
        ...


class Scorer(Protocol):
    """A service that scores responses."""

    @property
    def pace(self) -> Pace:
        """The slowest pace at which it scores while it works."""
        ...

    async def start(self) -> None:
        """Start the service.

        Raises:
            RuntimeError: if nothing can be scored; the message says why.
        """
        ...

    def score(self, requests: Sequence[tuple[Any, str]]) -> AsyncIterator[IndexedVerdicts]:
        """Yield one verdict per (problem, response) pair, as they become available. Failures are verdicts too."""
        ...

    async def close(self) -> None: ...


@runtime_checkable
class RemoteTask(Task, Protocol):
    """A task whose verdicts come from another service, without a local verifier process."""

    @property
    def variables(self) -> tuple[str, ...]:
        """The names of the variables of the command's environment that the client needs, such as one with a token."""
        ...

    def scorer(self, check: bool, environment: Mapping[str, str]) -> Scorer:
        """Return the client of that service.

        Args:
            check: True for the single request that is made before a run.
            environment: The values of `variables`.

        Raises:
            ValueError: if the options do not name the service.
        """
        ...


@dataclass(frozen=True, slots=True)
class StarterRecipe:
    """The numbers that decide a starter model; `docs/demo.md` says how the defaults were found.

    The model cache identifies a starter model by these values and the task's options.
    """

    examples: int = 64_000
    """The number of supervised examples."""
    correct_fraction: float = 0.3
    """The fraction of the examples that aim at a correct answer."""
    max_tries: int = 0
    """The largest number of attempts that an example shows before its answer, for tasks that show attempts."""
    repeat_fraction: float = 0.5
    """The fraction of the examples with attempts whose answer repeats the last attempt."""
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    max_tokens: int = 256
    """The largest number of tokens (characters) of prompt and response together."""
    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 3e-3
    seed: int = 0
    """The seed of the examples, of the initial weights and of the order of training."""


@dataclass(frozen=True, slots=True)
class Starter:
    """The starter model of a task: its recipe and its vocabulary."""

    recipe: StarterRecipe
    characters: str
    """Every character that a prompt or an example response may contain. Each is one token."""
    added_tokens: tuple[str, ...]
    """Strings that are one token each, such as the tags around an answer."""


@runtime_checkable
class StarterTask(Task, Protocol):
    """A task with a starter model (`model.source: starter`), which is trained locally before the first run.

    A starter model has seen well-formed responses to training problems, most of them incorrect. It is small enough to
    train on two CPU cores, and weak enough that its rewards are sparse.
    """

    starter: ClassVar[Starter]

    def starter_examples(self) -> list[tuple[str, str]]:
        """Return the (prompt, response) pairs to train on. They must not contain problems of the eval split."""
        ...


def shown(prompt: str | ChatMessages, characters: int = 400) -> str:
    """Return a prompt as one printable line. The middle of a long prompt is left out."""
    text = (
        prompt if isinstance(prompt, str) else "\n".join(message.get("content") or "" for message in prompt)
    )
    half = characters // 2
    return repr(text if len(text) <= characters else f"{text[:half]} … {text[-half:]}")
