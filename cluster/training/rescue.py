"""Help for prompts whose responses are all incorrect: prefixes and replays of their own successes, solved examples.

    prepare(prompt)  ─▶ the fleet samples ─▶ with_replays(groups) ─▶ the learner ─▶ observe(groups)
        ▲  prefixes (Prefix Sampling, arXiv 2605.05112)   ▲ replays (arXiv 2604.16918)          │
        │  examples (CBRL, arXiv 2603.18953)              │                                     ▼
        └─────────────────────────────────────────────────┴──────────────────────────── successes

A prompt gets one kind of help before it is sampled: prefixes if it fails, else examples. The decision is made once,
when the prompt is admitted, and is remembered until the prompt is settled: a checkpoint holds the decisions of the
prompts in flight, so that a resumed run samples the same prompts. The successes change only between two steps.

With every option off, prompts and groups pass through unchanged, and a checkpoint has no file of this module. Pure,
except for that file.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from cluster.configuration.example_prompts import seeded
from cluster.core.config import RunConfig
from cluster.core.files import write_atomically
from cluster.core.types import Prompt, Response, ScoredGroup, Verdict, row_of
from cluster.metrics.rescue import rescue_metrics
from cluster.training.batch import uninformative
from cluster.training.examples import ExamplePrompts, examples_probability
from cluster.training.rescue_state import FILE_NAME, Prepared, RescueState, read_state, to_bytes
from cluster.training.successes import Success, SuccessStore


class Rescue:
    """The rescue of one run.

    Usage:
        prompt = rescue.prepare(source.next(), step)
        groups = rescue.with_replays(batch.groups, version)     # to train on
        metrics = rescue.observe(batch.sampled, groups, step)   # after the step
    """

    def __init__(self, config: RunConfig, examples: ExamplePrompts | None = None) -> None:
        self._config = config
        self._options = config.rescue
        self._examples = examples
        self._successes = SuccessStore()
        self._prepared: dict[str, Prepared] = {}

    @property
    def is_on(self) -> bool:
        """True if any of the methods is on."""
        options = self._options
        return options.prefix_fraction > 0 or options.replay_max_age_steps > 0 or options.examples > 0

    def prepare(self, prompt: Prompt, step: int) -> Prompt:
        """Return a training prompt with its help, if it gets any. A prompt that was in flight when the run was
        interrupted gets the same help again."""
        if not self.is_on:
            return prompt
        known = self._prepared.get(prompt.id) or Prepared(step, self._prefixes(prompt, step))
        self._prepared[prompt.id] = known
        if known.prefixes:
            return replace(prompt, prefixes=_within(known.prefixes, prompt))
        return prompt if self._examples is None else self._examples.prepared(prompt, known.step)

    def is_rescued(self, group: ScoredGroup, version: int) -> bool:
        """Return True if a learner with the weights of `version` gets a replay with this group."""
        return self._replay(group, version) is not None

    def with_replays(self, groups: Sequence[ScoredGroup], version: int) -> tuple[ScoredGroup, ...]:
        """Return the groups, each with the success of its problem added if it is all incorrect and the success is young
        enough for a learner with the weights of `version`."""
        return tuple(
            group if (success := self._replay(group, version)) is None else _with_replay(group, success)
            for group in groups
        )

    def observe(
        self, sampled: Sequence[ScoredGroup], trained: Sequence[ScoredGroup], step: int
    ) -> dict[str, float]:
        """Take in the groups of a step that is done, and forget the help of their prompts. Return the step's metrics.

        Args:
            sampled: the groups as they were sampled, with the dropped ones.
            trained: the groups that were trained on, with their replays.
            step: the number of steps before this one, which is the version of the weights that were trained.
        """
        if not self.is_on:
            return {}
        for group in sampled:
            self._prepared.pop(group.prompt.id, None)
        self._successes.observe(sampled)
        probability = examples_probability(self._options, step)
        return rescue_metrics(self._options, sampled, trained, step, probability, len(self._successes))

    def save(self, checkpoint: Path, in_flight: Collection[str]) -> None:
        """Write the state into the directory of a checkpoint.

        Args:
            in_flight: the ids of the prompts that a resumed run will hand out again.

        Raises:
            OSError: if it cannot be written.
        """
        if self.is_on:
            prepared = {id_: self._prepared[id_] for id_ in in_flight if id_ in self._prepared}
            content = to_bytes(RescueState(list(self._successes), prepared))
            write_atomically(checkpoint / FILE_NAME, content, durable=True)

    def restore(self, checkpoint: Path, rows: int) -> None:
        """Continue with the state in a checkpoint. A run without rescue wrote none; then there are no successes yet.

        Args:
            rows: the number of rows of the training data.

        Raises:
            CheckpointError: if the file is damaged, or is another file.
        """
        file = checkpoint / FILE_NAME
        if not self.is_on or not file.exists():
            return
        state = read_state(file, rows)
        for row, success in state.successes:
            self._successes.put(row, success)
        self._prepared = dict(state.prepared)

    def _prefixes(self, prompt: Prompt, step: int) -> tuple[tuple[int, ...], ...]:
        """Return the prefixes of some responses to a prompt that fails: its success, each time cut at a place that the
        seed decides. At least one token is kept, and at least one is left to sample."""
        success = self._successes.get(row_of(prompt.id))
        if self._options.prefix_fraction == 0 or success is None or not success.fails_now:
            return ()
        tokens = success.token_ids
        end = min(len(tokens), prompt.sampling.max_response_tokens)
        if end < 2:
            return ()
        count = max(1, round(self._options.prefix_fraction * prompt.sampling.responses))
        cuts = seeded(self._config.seed, "prefixes", prompt.id, step).integers(1, end, size=count)
        return tuple(tokens[:cut] for cut in cuts)

    def _replay(self, group: ScoredGroup, version: int) -> Success | None:
        if self._options.replay_max_age_steps == 0 or uninformative(group) != "all incorrect":
            return None
        success = self._successes.get(row_of(group.prompt.id))
        if success is None or version - success.response.min_version > self._options.replay_max_age_steps:
            return None
        config = self._config
        fits = (
            success.response.whole_length <= config.rollout.max_response_tokens
            and success.tokens <= config.model.max_context_tokens
        )
        return success if fits else None  # the limits may be lower since the run was resumed


def _within(prefixes: tuple[tuple[int, ...], ...], prompt: Prompt) -> tuple[tuple[int, ...], ...]:
    """Return the prefixes within the limits of a prompt, which may be lower since the run was resumed."""
    sampling = prompt.sampling
    return tuple(prefix[: sampling.max_response_tokens - 1] for prefix in prefixes[: sampling.responses])


def _with_replay(group: ScoredGroup, success: Success) -> ScoredGroup:
    response: Response = replace(success.response, replayed_from=success.prompt_token_ids)
    verdict = Verdict(
        "correct", success.reward, None, f"replayed; sampled with the weights of step {response.min_version}"
    )
    responses = (*group.responses, response)
    return ScoredGroup(replace(group.group, responses=responses), (*group.verdicts, verdict))
