"""A data set's rows as a task's problems: checked, freed of repetitions, cut into two splits that share no prompt.

A split is decided by the content of the prompt alone, so it is the same in every process and every run, whatever the
order of the rows, and a row that is added later moves none of the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.core.types import Split
from reward.dataset.options import DatasetOptions
from reward.dataset.reading import SHOWN_FIELDS, Located, Row, read_rows, refuse
from reward.task import ChatMessages


@dataclass(frozen=True, slots=True)
class Rows:
    """The problems of both splits. Held-out rows are in the order of their hashes, so that the first of them are a
    fair sample."""

    train: list[Row]
    eval: list[Row]
    notes: tuple[str, ...]
    """What was left out, and why, in a line each."""


def load_rows(options: DatasetOptions, needed: Sequence[str] = ()) -> Rows:
    """Read the data that `options` name.

    Args:
        options: which data, and how it is cut.
        needed: fields that every row must have, besides the prompt.

    Raises:
        ValueError: there is no such data, or a row is not as it must be. The message says where.
    """
    if options.data is None:
        raise ValueError("name the data: set task.options.data to a .jsonl or .parquet file, or a hub id")
    notes: list[str] = []
    rows = _usable(options.data, options.data_split, options, needed, notes)
    if options.eval_data is None:
        eval_rows = {key: row for key, row in rows.items() if is_eval(key, options.eval_fraction)}
    else:
        eval_rows = _usable(options.eval_data, options.eval_data_split, options, needed, notes)
        if both := eval_rows.keys() & rows.keys():
            notes.append(f"{options.data}: {len(both)} prompts are held out as well, and are not trained on")
    return Rows(
        train=[row for key, row in rows.items() if key not in eval_rows],
        eval=[eval_rows[key] for key in sorted(eval_rows)],
        notes=tuple(notes),
    )


def is_eval(key: str, share: float) -> bool:
    """Whether the prompt with this key belongs to the held-out split."""
    return int(key[:16], 16) < share * 2**64


def prompt_key(prompt: str | ChatMessages) -> str:
    """The hash of a prompt's content; blanks around it do not count. 64 hexadecimal digits."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    content = [[message["role"], message["content"].strip()] for message in prompt]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def render(row: Row, options: DatasetOptions) -> str | ChatMessages:
    """The prompt of a row as the options have it asked."""
    prompt = row[options.prompt_field]
    tail = f"\n\n{options.instruction}" if options.instruction else ""
    if isinstance(prompt, str):
        if options.style == "plain":
            return prompt + tail
        prompt = [{"role": "user", "content": prompt}]
    *before, last = prompt
    system = [{"role": "system", "content": options.system}] if options.system else []
    return [*system, *before, {**last, "content": last["content"] + tail}]


def _usable(
    source: str, split: str, options: DatasetOptions, needed: Sequence[str], notes: list[str]
) -> dict[str, Row]:
    """The rows by the keys of their prompts, the first of those that are alike."""
    rows = read_rows(source, options.data_subset, split)
    refuse([mistake for row in rows if (mistake := _mistake(row, options, needed))])
    usable: dict[str, Row] = {}
    repeated: list[str] = []
    too_long: list[str] = []
    for where, row in rows:
        prompt = row[options.prompt_field]
        key = prompt_key(prompt)
        if options.max_prompt_characters and _characters(prompt) > options.max_prompt_characters:
            too_long.append(where)
        elif key in usable:
            repeated.append(where)
        else:
            usable[key] = row
    if repeated:
        notes.append(
            f"{source}: {len(repeated)} of {len(rows)} rows repeat an earlier prompt and are left out, "
            f"the first is {repeated[0]}"
        )
    if too_long:
        notes.append(
            f"{source}: {len(too_long)} of {len(rows)} prompts are longer than max_prompt_characters and are left out, "
            f"the first is {too_long[0]}"
        )
    return usable


def _mistake(located: Located, options: DatasetOptions, needed: Sequence[str]) -> str | None:
    """What is wrong with a row, or None."""
    where, row = located
    for name in (options.prompt_field, *needed):
        if row.get(name) is None:
            there = ", ".join(list(row)[:SHOWN_FIELDS]) or "none"
            return f"{where}: there is no field {name!r} (there are {there})"
    prompt = row[options.prompt_field]
    if isinstance(prompt, str):
        if not prompt.strip():
            return f"{where}: the prompt is empty"
        return None if _is_text(prompt) else f"{where}: the prompt holds half of a surrogate pair"
    if not _is_conversation(prompt):
        return f"{where}: the prompt must be text, or chat messages with a role and a content each"
    if options.style == "plain":
        return f"{where}: the prompt is chat messages, which go with style: chat"
    if not all(_is_text(message["content"]) for message in prompt):
        return f"{where}: the prompt holds half of a surrogate pair"
    return None if prompt[-1]["content"].strip() else f"{where}: the last message is empty"


def _is_text(prompt: str) -> bool:
    """Whether it can be tokenized. JSON has escapes for what is no text: a half of a surrogate pair."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_conversation(prompt: Any) -> bool:
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in prompt
        )
    )


def _characters(prompt: str | ChatMessages) -> int:
    return len(prompt) if isinstance(prompt, str) else sum(len(message["content"]) for message in prompt)


class DatasetProblems:
    """What tasks with rows as problems have in common: a base class."""

    fields: tuple[str, ...] = ()
    """That rows must have, besides the prompt."""

    def __init__(self, options: DatasetOptions) -> None:
        self._data = options
        self._rows: Rows | None = None

    def problems(self, split: Split) -> Sequence[Row]:
        rows = self._loaded()
        return rows.train if split == "train" else rows.eval

    def render(self, problem: Row) -> str | ChatMessages:
        return render(problem, self._data)

    def notes(self) -> Sequence[str]:
        return self._loaded().notes

    def category(self, problem: Row) -> str | None:
        field = self._data.category_field
        return None if field is None or problem.get(field) is None else str(problem[field])

    def _loaded(self) -> Rows:
        """Read when it is first asked for: who only verifies needs no rows."""
        if self._rows is None:
            self._rows = load_rows(self._data, self.fields)
        return self._rows
