"""Training prompts in an order that depends on what the responses to them have shown: `task.selection: informative`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from cluster.core.types import Prompt, Sampling, ScoredGroup, row_of
from cluster.run_state.checkpoints import Checkpoint
from cluster.run_state.selection_state import SelectionState
from cluster.training.batch import Batch
from cluster.training.prompts import PromptSource, TokenizedProblem
from cluster.training.selection import Evidence, Selection
from learner.state.state_files import CheckpointError


class InformativeSource(PromptSource):
    """An endless sequence of training prompts, drawn by `Selection`.

    The id of a prompt is `train/<visit>/<row>`, where visit is the number of times that the row was drawn before. So no
    id occurs twice in a run. A row is in flight from its draw until `observe` gets its group; until then it is not
    drawn again, even if the group was dropped earlier. So the draws of an on-policy run do not depend on the order in
    which the workers finish. `epoch` is the number of draws in whole multiples of the number of problems.
    """

    def __init__(
        self, problems: Sequence[TokenizedProblem], seed: int, sampling: Callable[[str], Sampling]
    ) -> None:
        super().__init__(problems, seed, sampling)
        self._selection = Selection(SelectionState.initial(len(problems)))

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue where the source of `checkpoint` was.

        Raises:
            CheckpointError: if the checkpoint has no state of a selection of these prompts.
        """
        refuse_other_selection(checkpoint, "informative")
        assert checkpoint.selection is not None
        if checkpoint.selection.rows != len(self._problems):
            raise CheckpointError(
                f"{checkpoint.path}: cannot resume from this checkpoint: its selection has "
                f"{checkpoint.selection.rows} training prompts, and the run has {len(self._problems)}; restore the "
                "earlier settings of task.*, or train under another name"
            )
        super().resume(checkpoint)
        self._selection = Selection(checkpoint.selection)

    @property
    def selection(self) -> SelectionState:
        return self._selection.state

    def next(self) -> Prompt:
        """Return the next prompt.

        Raises:
            ValueError: if the prompts of all problems are in flight.
        """
        if self._again:
            return self.by_id(self._again.popleft())
        row = self._selection.draw(self._seed, self.position)
        self.position += 1
        return self.by_id(f"train/{self._selection.times_drawn(row) - 1}/{row}")

    def observe(self, batch: Batch) -> dict[str, float]:
        """Learn from all groups that were sampled for the batch. Return the metrics of its selection."""
        sampled = [row_of(group.prompt.id) for group in batch.sampled]
        metrics = {
            "selection/expected_signal": self._selection.relative_signal(sampled),
            "selection/repeated_fraction": sum(_visit(group) > 0 for group in batch.sampled) / len(sampled),
        }
        trained = [row_of(group.prompt.id) for group in batch.groups]
        dropped = [row_of(prompt_id) for ids in batch.dropped_ids.values() for prompt_id in ids]
        self._selection.observe([evidence(group) for group in batch.sampled], trained, dropped)
        metrics["selection/prompts_seen_fraction"] = self._selection.drawn_fraction
        metrics["selection/trained_max"] = float(self._selection.most_trained)
        return metrics

    def prior(self, prompt_id: str) -> tuple[float, float]:
        return self._selection.posterior(row_of(prompt_id))


def evidence(group: ScoredGroup) -> Evidence:
    """Return what a group tells about the policy's own success probability: the verdicts of all its responses, if they
    were sampled without help. On responses whose verifier failed, it tells nothing."""
    if group.helped:
        return Evidence(row_of(group.prompt.id), 0, 0)
    return Evidence(row_of(group.prompt.id), group.correct, group.valid - group.correct)


def prompt_source(
    selection: Literal["uniform", "informative"],
    problems: Sequence[TokenizedProblem],
    seed: int,
    sampling: Callable[[str], Sampling],
) -> PromptSource:
    """Return the source for `task.selection`."""
    kind = InformativeSource if selection == "informative" else PromptSource
    return kind(problems, seed, sampling)


def refuse_other_selection(checkpoint: Checkpoint, selection: Literal["uniform", "informative"]) -> None:
    """Raise unless the run of `checkpoint` chose its prompts by `selection`.

    Raises:
        CheckpointError: if it chose them otherwise.
    """
    saved = "uniform" if checkpoint.selection is None else "informative"
    if saved != selection:
        raise CheckpointError(
            f"{checkpoint.path}: cannot resume from this checkpoint: its prompts were chosen with task.selection: "
            f"{saved}, and it is {selection} now; set it back, or train under another name"
        )


def _visit(group: ScoredGroup) -> int:
    """Return the number of times that the group's row was drawn before."""
    return int(group.prompt.id.split("/")[1])
