"""The data types that `cluster`, `rollout`, `learner` and `reward` exchange.

Torch-free and Ray-free: every package may import this module, and it imports none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

Outcome = Literal["correct", "incorrect", "limit", "error"]
"""The result of a verifier: `limit` if the response took it to its limit of time or memory, `error` if it failed.

A limit counts as not correct, since otherwise a model could avoid bad rewards by answers that no verifier can finish.
An error leaves the statistics, because the verifier, a service or the machine causes it."""
FinishReason = Literal["stop", "length"]
Split = Literal["train", "eval"]
"""The part of a dataset: for training or for evaluation."""
CategoryOf = Callable[[Any], str | None]
"""A function from a problem to its category; None if the task has no categories."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """The parameters for sampling the responses to one prompt. Top-p and top-k are never used, because the sampler's
    log-probabilities must be those of the distribution from which the tokens were drawn."""

    responses: int
    temperature: float
    max_response_tokens: int
    seed: int | None
    """The seed of response 0; response i uses `seed + i`. None samples without a fixed seed."""
    first: int = 0
    """The index of the first response. It is above 0 if a prompt that has responses already gets more of them."""

    @property
    def indexes(self) -> range:
        """The indexes of the responses in their group."""
        return range(self.first, self.first + self.responses)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One dataset row in one epoch, rendered and tokenized once."""

    id: str
    """The id, unique within the run: `train/<epoch>/<row>` or `eval/<row>`. With an informative selection, the
    number of earlier draws of the row is in place of the epoch."""
    text: str
    token_ids: tuple[int, ...]
    problem: Any
    """The data with which the task's verifier scores a response (picklable, torch-free)."""
    sampling: Sampling
    prefixes: tuple[tuple[int, ...], ...] = ()
    """The tokens with which response i begins, for the first responses of the group. The others begin with nothing."""
    has_examples: bool = False
    """True if solved examples of other problems stand before the problem."""

    @property
    def helped(self) -> bool:
        """True if the responses say less about the problem's difficulty, because some of them get help."""
        return bool(self.prefixes) or self.has_examples

    def prefix(self, index: int) -> tuple[int, ...]:
        """Return the tokens with which response `index` begins."""
        return self.prefixes[index] if index < len(self.prefixes) else ()


def row_of(prompt_id: str) -> int:
    """Return the row of the prompt with an id such as `train/0/17`."""
    return int(prompt_id.rpartition("/")[2])


LOADED_VERSION = 0
"""The version of the weights that a process has when it has loaded the model and received no others."""


class VersionSpan(NamedTuple):
    """The tokens start … end − 1 of a response, which were sampled with weight version `version`."""

    version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Response:
    """One sampled response.

    `token_ids` ends with the end-of-sequence token if `finish_reason` is "stop". `logprobs[t]` is the sampler's
    log-probability of `token_ids[t]` at the sampling temperature, under the weights with which the token was sampled.
    """

    token_ids: np.ndarray  # int64 [T]
    logprobs: np.ndarray  # float32 [T]
    text: str
    """The text of the whole response, with its prefix. The verifier scores it."""
    finish_reason: FinishReason
    version_spans: tuple[VersionSpan, ...]
    """Spans that cover all tokens, in order. There are several if new weights arrived during sampling."""
    prefix: tuple[int, ...] = ()
    """The tokens that the response was given as its beginning. They are context like the prompt: they are not among
    `token_ids`, have no log-probabilities, and nothing is learned from them."""
    replayed_from: tuple[int, ...] | None = None
    """For a response of an earlier batch that is trained on again, the tokens of the prompt that it was sampled for.
    None for the responses that were sampled for this batch."""

    @property
    def whole_length(self) -> int:
        """The number of tokens of the whole response, with its prefix; `rollout.max_response_tokens` limits it."""
        return len(self.prefix) + len(self.token_ids)

    @property
    def min_version(self) -> int:
        return min(span.version for span in self.version_spans)

    @property
    def max_version(self) -> int:
        return max(span.version for span in self.version_spans)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A response that a rollout worker returns: number `index` of all responses to a prompt."""

    prompt_id: str
    index: int
    response: Response


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verifier's result for one response. `reward` enters the objective; `outcome` enters pass@k."""

    outcome: Outcome
    reward: float
    answer: str | None
    reason: str

    @property
    def is_valid(self) -> bool:
        """True if the verdict enters the statistics; False if the verifier failed."""
        return self.outcome != "error"


IndexedVerdicts = Sequence[tuple[int, Verdict]]
"""Verdicts, each with the index of its response in the request."""


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """One response to be scored by the task's verifier."""

    problem: Any
    text: str
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Group:
    """All responses to one prompt, and the worker that sampled the last of them."""

    prompt: Prompt
    responses: tuple[Response, ...]
    worker: str


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group with one verdict per response, in the same order."""

    group: Group
    verdicts: tuple[Verdict, ...]

    @property
    def prompt(self) -> Prompt:
        return self.group.prompt

    @property
    def responses(self) -> tuple[Response, ...]:
        return self.group.responses

    @property
    def min_version(self) -> int:
        return min(response.min_version for response in self.responses)

    @property
    def helped(self) -> bool:
        """True if the outcomes are no evidence of the problem's difficulty: some responses got help (see
        `Prompt.helped`) or are replays of earlier ones."""
        return self.prompt.helped or any(response.replayed_from is not None for response in self.responses)

    @property
    def valid(self) -> int:
        """The number of responses with a known outcome; on the remaining ones the verifier failed."""
        return sum(verdict.is_valid for verdict in self.verdicts)

    @property
    def correct(self) -> int:
        """The number of correct responses."""
        return sum(verdict.outcome == "correct" for verdict in self.verdicts)

    @property
    def extra_responses(self) -> int:
        """The number of responses by which the group was extended beyond those that its prompt began with."""
        return len(self.responses) - self.prompt.sampling.responses


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One response, ready to be trained on."""

    prompt_token_ids: np.ndarray  # int64 [S], the whole context: the prompt, and the prefix of the response
    response_token_ids: np.ndarray  # int64 [T]
    sampler_logprobs: np.ndarray  # float32 [T]
    advantage: float
    """The weighted advantage w_i A_i."""
    scale: float
    """The factor that multiplies each of its tokens in the loss: 1 / (N · L̄) for HPO."""
    is_replay: bool = False
    """True for a response of an earlier batch, whose sampler had other weights than the learner."""

    @property
    def tokens(self) -> int:
        """The length of prompt and response together."""
        return len(self.prompt_token_ids) + len(self.response_token_ids)


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """The data of one optimizer step: `learner.objective.training_batch.build_training_batch` builds it.

    `samples` leaves out responses whose gradient is exactly 0: the masked ones and, unless a KL or an entropy term acts
    on every response, those with advantage 0. Responses with advantage 0 have been counted in N, L̄ and α; for masked
    responses see `build_training_batch`.
    """

    samples: tuple[TrainingSample, ...]
    metrics: dict[str, float] = field(default_factory=dict)


LEFT_FACTOR, RIGHT_FACTOR = ".left", ".right"
"""The suffixes of a low-rank update: `NAME.left` [m, r] @ `NAME.right` [r, n] is added to the weight NAME [m, n]."""


class LogprobGap(NamedTuple):
    """The absolute differences between the sampler's and the learner's log-probabilities of the same tokens, or limits
    of these. They are NaN or infinite if the difference of any token is."""

    mean: float
    """The mean over the tokens."""
    largest: float
    """The largest difference of a token."""

    def exceeds(self, limits: LogprobGap) -> bool:
        """Return True unless both values are within their limits. NaN is within no limit."""
        return not (self.mean <= limits.mean and self.largest <= limits.largest)


class WeightLayout(NamedTuple):
    """The name, type and shape of a published tensor."""

    name: str
    dtype: str
    """The name of the type in torch, such as `bfloat16`."""
    shape: tuple[int, ...]


SAFETENSORS_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""The types of published weights: the name in a safetensors file, and in torch."""


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """A published weight version, and a probe that checks that a worker really serves it.

    It has either all weights or, for adapters, the low-rank updates of the weights that the worker loaded at its start
    (float32, see `LEFT_FACTOR`). `weights` is the Ray object reference of a safetensors file in parts (a list of uint8
    [bytes] whose concatenation is the file); None while only the learner has the weights.
    `layout` lists the tensors that are broadcast, in this order.
    `probe_logprobs[k][t]` is the learner's log-probability (temperature 1) of token t + 1 of `probe_tokens[k]`.
    """

    version: int
    weights: Any
    probe_tokens: tuple[tuple[int, ...], ...]
    probe_logprobs: tuple[np.ndarray, ...] = field(repr=False)
    layout: tuple[WeightLayout, ...] = field(default=(), repr=False)
