"""Tasks whose problems are the rows of a data set: options, validation, and two splits that share no prompt.

The content of a prompt alone decides its split. The split is therefore the same in every process and every run, in any
order of the rows, and a row that is added later does not move another one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from cluster.core.schema import Count, Section
from cluster.core.text import without_nulls
from cluster.core.types import Split
from reward.dataset.conversation import content_of, conversation_mistake, ends_with_assistant, with_options
from reward.dataset.reading import read_rows
from reward.dataset.values import SHOWN_FIELDS, DataError, Located, Row, gap, is_missing, refuse
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
    """A file (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`), a directory with such files, or a hub id such as
    `openai/gsm8k`. Cells of CSV files are text."""
    data_subset: str | None = None
    """The subset ("config") of a data set on the hub."""
    data_split: str = "train"
    """The split of a directory or hub data set to read. Without `eval_data` its rows are divided into train and
    eval."""
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
    """A text that is appended to every prompt after an empty line, such as the format of the answer. In chat messages
    it follows the last message of the user."""
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
    """One line for each reason to leave rows out, and one if the model continues messages of the assistant."""
    locations: dict[str, str]
    """The location of each row, such as `data.jsonl:17`, by the key of its prompt."""


def load_rows(
    options: DatasetOptions, needed: Sequence[str] = (), check_row: Callable[[Row], None] | None = None
) -> Rows:
    """Read the data that `options` names.

    Args:
        options: the source of the data and the way to split it.
        needed: fields in which every row must have a value, in addition to the prompt.
        check_row: a function that raises ValueError if the task cannot use a row.

    Raises:
        DataError: if the data do not exist or a row is invalid. The message says where.
    """
    if options.data is None:
        raise DataError(
            "name the data: set task.options.data to a .jsonl, .csv or .parquet file, or a hub id"
        )
    notes: list[str] = []
    locations: dict[str, str] = {}
    rows = _usable(options.data, options.data_split, options, needed, check_row, notes, locations)
    if options.eval_data is None:
        eval_rows = {key: row for key, row in rows.items() if is_eval(key, options.eval_fraction)}
    else:
        eval_rows = _usable(
            options.eval_data, options.eval_data_split, options, needed, check_row, notes, locations
        )
        if both := eval_rows.keys() & rows.keys():
            notes.append(f"{options.data}: {len(both)} prompts are also eval prompts, and are not trained on")
    return Rows(
        train=[row for key, row in rows.items() if key not in eval_rows],
        eval=[eval_rows[key] for key in sorted(eval_rows)],
        notes=tuple(notes),
        locations=locations,
    )


def is_eval(key: str, eval_fraction: float) -> bool:
    """Return True if the prompt with this key belongs to the eval split."""
    return int(key[:16], 16) < eval_fraction * 2**64


def prompt_key(prompt: str | ChatMessages) -> str:
    """Return the hash of a prompt's roles, contents without surrounding blanks, and calls of tools, as 64 hexadecimal
    digits."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    content = []
    for message in prompt:
        calls = without_nulls(message.get("tool_calls"))
        content.append([message["role"], content_of(message).strip(), *([calls] if calls else [])])
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()


def render(row: Row, options: DatasetOptions) -> str | ChatMessages:
    """Return the prompt of a row in the style that the options name."""
    prompt = row[options.prompt_field]
    if isinstance(prompt, str):
        if options.style == "plain":
            return f"{prompt}\n\n{options.instruction}" if options.instruction else prompt
        prompt = [{"role": "user", "content": prompt}]
    return with_options(prompt, options.system, options.instruction)


def _usable(
    source: str,
    split: str,
    options: DatasetOptions,
    needed: Sequence[str],
    check_row: Callable[[Row], None] | None,
    notes: list[str],
    locations: dict[str, str],
) -> dict[str, Row]:
    """Return the valid rows by the keys of their prompts, and add to `notes` and `locations`. Of equal prompts the
    first row counts."""
    rows = read_rows(source, options.data_subset, split)
    refuse([mistake for row in rows if (mistake := _mistake(row, options, needed, check_row))])
    if note := _gaps(source, rows):
        notes.append(note)
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
            locations[key] = where
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
    continued = [
        locations[key] for key, row in usable.items() if ends_with_assistant(row[options.prompt_field])
    ]
    if continued:
        notes.append(
            f"{source}: {len(continued)} of {len(usable)} prompts end with a message of the assistant, which the model "
            f"continues, the first is {continued[0]}"
        )
    return usable


def _gaps(source: str, rows: Sequence[Located]) -> str | None:
    """Return a note on the fields that have a value in some rows only, or None.

    A function or a service may need such a field, which only its author knows.
    """
    names = dict.fromkeys(name for _, row in rows for name in row)
    found = []
    for name in names:
        gaps = [where for where, row in rows if is_missing(row.get(name))]
        if 0 < len(gaps) < len(rows):
            found.append(f"{name!r:.60} in {len(gaps)} of {len(rows)} rows, the first is {gaps[0]}")
    if not found:
        return None
    rest = len(found) - SHOWN_FIELDS
    more = f"; and {rest} more fields" if rest > 0 else ""
    return f"{source}: fields without a value: {'; '.join(found[:SHOWN_FIELDS])}{more}"


def _mistake(
    located: Located,
    options: DatasetOptions,
    needed: Sequence[str],
    check_row: Callable[[Row], None] | None,
) -> str | None:
    """Return the mistake in a row, or None."""
    where, row = located
    found = next((reason for name in (options.prompt_field, *needed) if (reason := gap(row, name))), None)
    found = found or _prompt_mistake(row[options.prompt_field], options)
    if found is None and check_row is not None:
        try:
            check_row(row)
        except ValueError as error:
            found = str(error)
    return found and f"{where}: {found}"


def _prompt_mistake(prompt: Any, options: DatasetOptions) -> str | None:
    if isinstance(prompt, str):
        return None
    if mistake := conversation_mistake(prompt):
        return mistake
    if options.style == "plain":
        return "the prompt is chat messages, which need style: chat"
    if options.instruction and all(message["role"] != "user" for message in prompt):
        return "the prompt has no message of the user, to which task.options.instruction could be appended"
    return None


def _characters(prompt: str | ChatMessages) -> int:
    return len(prompt) if isinstance(prompt, str) else sum(len(content_of(message)) for message in prompt)


class DatasetProblems:
    """The base class of tasks whose problems are rows."""

    fields: tuple[str, ...] = ()
    """Fields in which every row must have a value, in addition to the prompt."""

    def __init__(self, options: DatasetOptions) -> None:
        self._data = options
        self._rows: Rows | None = None

    def problems(self, split: Split) -> Sequence[Row]:
        rows = self._loaded()
        return rows.train if split == "train" else rows.eval

    def check_row(self, row: Row) -> None:
        """Check a row when the data are read. A task overrides this to refuse rows that its verifier cannot use.

        Raises:
            ValueError: if the task cannot use the row. The message becomes `FILE:ROW: message`.
        """

    def render(self, problem: Row) -> str | ChatMessages:
        return render(problem, self._data)

    def notes(self) -> Sequence[str]:
        return self._loaded().notes

    def where(self, problem: Row) -> str:
        return self._loaded().locations[prompt_key(problem[self._data.prompt_field])]

    def category(self, problem: Row) -> str | None:
        field = self._data.category_field
        return None if field is None or is_missing(problem.get(field)) else str(problem[field])

    def _loaded(self) -> Rows:
        """Read the rows at the first use: verifier processes need none."""
        if self._rows is None:
            self._rows = load_rows(self._data, self.fields, self.check_row)
        return self._rows
