"""Tasks whose problems are the rows of a data set: options, validation, and two splits that share no prompt.

The content of a prompt alone decides its split. The split is therefore the same in every process and every run, in any
order of the rows, and a row that is added later does not move another one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from cluster.core.schema import Count, Section
from cluster.core.types import Split
from reward.dataset.reading import SHOWN_FIELDS, Located, Row, read_rows, refuse
from reward.task import ChatMessages, Example, Sample

SUM = Sample(
    options={},
    problem={"prompt": "What is 17 + 25?", "answer": "42"},
    example=Example(correct="Answer: 42", incorrect="Answer: 43"),
)
"""A row as a user may have it, for `launch.py tasks`."""


class DatasetOptions(Section):
    """The options that all tasks with prompts from a data set share."""

    data: str | None = None
    """A `.jsonl` or `.parquet` file, a directory that `datasets` can load, or a hub id such as `openai/gsm8k`."""
    data_subset: str | None = None
    """The subset ("config") of a data set on the hub."""
    data_split: str = "train"
    """The split of a Hugging Face data set to read. Without `eval_data` its rows are divided into train and eval."""
    eval_data: str | None = None
    """The source of the eval prompts, if not `data`. `eval_data_split` selects its split, if it has splits."""
    eval_data_split: str = "test"
    """The split of `eval_data` to read."""
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """The fraction of the rows that belong to the eval split without `eval_data`. The hash of the prompt decides, so
    the split is the same in every run."""
    prompt_field: str = "prompt"
    """The field with the prompt: text, or chat messages (`[{"role": …, "content": …}, …]`)."""
    style: Literal["chat", "plain"] = "chat"
    """`chat` makes a text prompt a user message in the model's chat template; `plain` passes the text unchanged."""
    system: str | None = None
    """A system message at the beginning of every conversation."""
    instruction: str | None = None
    """A text that is appended to every prompt after an empty line, such as the format of the answer."""
    category_field: str | None = None
    """The field with the category of a problem, such as `level` in MATH. Evaluations report each category."""
    max_prompt_characters: Count | None = None
    """Rows with longer prompts are left out."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of both splits. Eval rows are sorted by their hashes, so the first n of them are a fair sample."""

    train: list[Row]
    eval: list[Row]
    notes: tuple[str, ...]
    """One line for each reason to leave rows out."""


def load_rows(options: DatasetOptions, needed: Sequence[str] = ()) -> Rows:
    """Read the data that `options` names.

    Args:
        options: the source of the data and the way to split it.
        needed: fields that every row must have, in addition to the prompt.

    Raises:
        ValueError: if the data do not exist or a row is invalid. The message says where.
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
            notes.append(f"{options.data}: {len(both)} prompts are also eval prompts, and are not trained on")
    return Rows(
        train=[row for key, row in rows.items() if key not in eval_rows],
        eval=[eval_rows[key] for key in sorted(eval_rows)],
        notes=tuple(notes),
    )


def is_eval(key: str, eval_fraction: float) -> bool:
    """Return True if the prompt with this key belongs to the eval split."""
    return int(key[:16], 16) < eval_fraction * 2**64


def prompt_key(prompt: str | ChatMessages) -> str:
    """Return the hash of a prompt's content without surrounding blanks, as 64 hexadecimal digits."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    content = [[message["role"], message["content"].strip()] for message in prompt]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def render(row: Row, options: DatasetOptions) -> str | ChatMessages:
    """Return the prompt of a row in the style that the options name."""
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
    """Return the valid rows by the keys of their prompts. Of equal prompts the first row counts."""
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
    """Return the mistake in a row, or None."""
    where, row = located
    for name in (options.prompt_field, *needed):
        if row.get(name) is None:
            fields = ", ".join(list(row)[:SHOWN_FIELDS]) or "none"
            return f"{where}: there is no field {name!r} (fields: {fields})"
    prompt = row[options.prompt_field]
    if isinstance(prompt, str):
        if not prompt.strip():
            return f"{where}: the prompt is empty"
        return None if _is_text(prompt) else f"{where}: the prompt contains half of a surrogate pair"
    if not _is_conversation(prompt):
        return f"{where}: the prompt must be text, or chat messages that each have a role and a content"
    if options.style == "plain":
        return f"{where}: the prompt is chat messages, which need style: chat"
    if not all(_is_text(message["content"]) for message in prompt):
        return f"{where}: the prompt contains half of a surrogate pair"
    return None if prompt[-1]["content"].strip() else f"{where}: the last message is empty"


def _is_text(prompt: str) -> bool:
    """Return True if the prompt can be tokenized. JSON can escape half of a surrogate pair, which is not text."""
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
    """The base class of tasks whose problems are rows."""

    fields: tuple[str, ...] = ()
    """Fields that every row must have, in addition to the prompt."""

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
        """Read the rows at the first use: verifier processes need none."""
        if self._rows is None:
            self._rows = load_rows(self._data, self.fields)
        return self._rows
