"""The file `rescue.safetensors` of a checkpoint: the successes, and the help that the prompts in flight were given.

Sequences of different lengths are stored as one array with all values and one with the lengths. The format has no code
in it, and everything that is read is checked before it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cluster.core.errors import RefusedError
from cluster.core.reading import RECORD_MIB, read_bytes, shown_path
from cluster.core.types import FinishReason, Response, VersionSpan
from cluster.training.successes import Success
from learner.state.state_files import CheckpointError

FILE_NAME = "rescue.safetensors"
_FORMAT = {"format": "hpo-trainer rescue 1"}
_FINISH: tuple[FinishReason, ...] = ("stop", "length")


@dataclass(frozen=True, slots=True)
class Prepared:
    """The help that a prompt was given when it was admitted."""

    step: int
    """The number of steps before its admission."""
    prefixes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class RescueState:
    """The state of the rescue between two steps."""

    successes: Sequence[tuple[int, Success]]
    """Rows with their newest success, oldest first."""
    prepared: Mapping[str, Prepared]
    """The help of the prompts in flight, by their ids."""


_VALUES: dict[str, type] = {
    "rows": np.int64,
    "rewards": np.float64,
    "fails_now": np.bool_,
    "finish": np.uint8,
    "steps": np.int64,
}
"""Arrays with one value per success, and `steps` with one per prompt in flight."""
_SEQUENCES: dict[str, type] = {
    "prompt": np.int64,
    "prefix": np.int64,
    "tokens": np.int64,
    "logprobs": np.float32,
    "text": np.uint8,
    "versions": np.int64,
    "starts": np.int64,
    "ends": np.int64,
    "ids": np.uint8,
    "prefix_lengths": np.int64,
    "prefixes": np.int64,
}
"""Sequences of values, one per success or one per prompt in flight."""
_OF_PROMPTS = ("ids", "prefix_lengths", "prefixes")
"""The sequences of the prompts in flight."""


def to_bytes(state: RescueState) -> bytes:
    """Return the content of the file."""
    successes = [success for _, success in state.successes]
    responses = [success.response for success in successes]
    spans = [response.version_spans for response in responses]
    prepared = list(state.prepared.values())
    columns: dict[str, Iterable[Any]] = {
        "rows": [row for row, _ in state.successes],
        "rewards": [success.reward for success in successes],
        "fails_now": [success.fails_now for success in successes],
        "finish": [_FINISH.index(response.finish_reason) for response in responses],
        "steps": [entry.step for entry in prepared],
        "prompt": [success.prompt_token_ids for success in successes],
        "prefix": [response.prefix for response in responses],
        "tokens": [response.token_ids for response in responses],
        "logprobs": [response.logprobs for response in responses],
        "text": [_text_bytes(response.text) for response in responses],
        "versions": [[span.version for span in each] for each in spans],
        "starts": [[span.start for span in each] for each in spans],
        "ends": [[span.end for span in each] for each in spans],
        "ids": [_text_bytes(prompt_id) for prompt_id in state.prepared],
        "prefix_lengths": [[len(prefix) for prefix in entry.prefixes] for entry in prepared],
        "prefixes": [[token for prefix in entry.prefixes for token in prefix] for entry in prepared],
    }
    arrays: dict[str, np.ndarray] = {
        name: np.array(list(columns[name]), dtype=kind) for name, kind in _VALUES.items()
    }
    for name, kind in _SEQUENCES.items():
        parts: list[np.ndarray] = [np.asarray(part, dtype=kind) for part in columns[name]]
        arrays[name] = np.concatenate([np.zeros(0, dtype=kind), *parts])
        arrays[f"{name}.lengths"] = np.array([len(part) for part in parts], dtype=np.int64)
    return save(arrays, _FORMAT)


def read_state(file: Path, rows: int) -> RescueState:
    """Return the state in a file of a checkpoint.

    Args:
        rows: the number of rows of the training data.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is damaged, or is another file.
    """
    try:
        arrays = load(read_bytes(file, RECORD_MIB))
        return _checked(arrays, rows)
    except (SafetensorError, RefusedError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{shown_path(file)}: this is not the rescue state of a run with these prompts ({reason}); restore the "
            "checkpoint from a copy, or delete it, so that the run resumes from an earlier one"
        ) from error


def _checked(arrays: Mapping[str, np.ndarray], rows: int) -> RescueState:
    """Return the state that the arrays describe.

    Raises:
        ValueError: if they do not describe one; the message says why.
    """
    expected = {**_VALUES, **_SEQUENCES, **{f"{name}.lengths": np.int64 for name in _SEQUENCES}}
    if arrays.keys() != expected.keys():
        raise ValueError(f"its arrays are {', '.join(sorted(arrays)) or 'none'}")
    for name, kind in expected.items():
        if arrays[name].dtype != kind or arrays[name].ndim != 1:
            raise ValueError(f"{name} has the type {arrays[name].dtype} and the shape {arrays[name].shape}")
    sequences = {name: _cut(name, arrays[name], arrays[f"{name}.lengths"]) for name in _SEQUENCES}
    for names, count in (
        ([name for name in sequences if name not in _OF_PROMPTS], len(arrays["rows"])),
        (_OF_PROMPTS, len(arrays["steps"])),
    ):
        _require(all(len(sequences[name]) == count for name in names), "its arrays have different lengths")
    values = [arrays[name] for name in ("rewards", "fails_now", "finish")]
    _require(all(len(value) == len(arrays["rows"]) for value in values), "its arrays have different lengths")
    _require(bool(np.all((arrays["rows"] >= 0) & (arrays["rows"] < rows))), "it has rows beyond the data")
    _require(len(set(arrays["rows"].tolist())) == len(arrays["rows"]), "a row has several successes")
    _require(bool(np.all(arrays["finish"] < len(_FINISH))), "the end of a response is not known")
    successes = [(int(row), _success(number, arrays, sequences)) for number, row in enumerate(arrays["rows"])]
    ids = [part.tobytes().decode() for part in sequences["ids"]]
    prepared = [
        Prepared(int(step), tuple(tuple(part.tolist()) for part in _cut("prefixes", tokens, lengths)))
        for step, tokens, lengths in zip(
            arrays["steps"], sequences["prefixes"], sequences["prefix_lengths"], strict=True
        )
    ]
    return RescueState(successes, dict(zip(ids, prepared, strict=True)))


def _success(
    number: int, arrays: Mapping[str, np.ndarray], sequences: Mapping[str, list[np.ndarray]]
) -> Success:
    part = {name: of_all[number] for name, of_all in sequences.items() if name not in _OF_PROMPTS}
    tokens, logprobs = part["tokens"].copy(), part["logprobs"].copy()
    _require(len(tokens) == len(logprobs) > 0, "a response has other tokens than log-probabilities")
    spans = tuple(
        VersionSpan(*map(int, span))
        for span in zip(part["versions"], part["starts"], part["ends"], strict=True)
    )
    _require(bool(spans), "a response has no weight versions")
    response = Response(
        token_ids=tokens,
        logprobs=logprobs,
        text=part["text"].tobytes().decode("utf-8", "surrogatepass"),
        finish_reason=_FINISH[int(arrays["finish"][number])],
        version_spans=spans,
        prefix=tuple(part["prefix"].tolist()),
    )
    prompt = tuple(part["prompt"].tolist())
    return Success(prompt, response, float(arrays["rewards"][number]), bool(arrays["fails_now"][number]))


def _cut(name: str, values: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Return the sequences that `values` holds one after the other."""
    _require(bool(np.all(lengths >= 0)) and int(lengths.sum()) == len(values), f"{name} has other lengths")
    return np.split(values, np.cumsum(lengths)[:-1]) if len(lengths) else []


def _require(condition: bool, fault: str) -> None:
    if not condition:
        raise ValueError(fault)


def _text_bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)
