"""One line for each mistake that pydantic finds in a configuration: what was expected, and which setting was meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from cluster.core.problem import Problem
from cluster.core.renamed import ForeignName, foreign_names, former_setting

_TASK_OPTIONS = "task.options"
_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "int_parsing_size": "an integer with fewer digits",
    "int_type": "an integer",
    "list_type": "a list",
    "model_type": "a mapping of settings",
    "path_type": "a path",
    "string_type": "text",
    "tuple_type": "a list",
}
"""The description of the expected value, by pydantic's type of error."""
KEY_ITSELF = "[key]"
"""The last part of an error's location in pydantic if a key of a mapping is invalid, and not the value under it."""


def setting_names(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield all settings of a schema, dotted."""
    for name, field in schema.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from setting_names(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def closest(word: str, choices: Collection[str]) -> str | None:
    """Return the choice that `word` is probably a misspelling of."""
    return next(iter(difflib.get_close_matches(word, choices, n=1, cutoff=0.5)), None)


def problems_of(schema: type[BaseModel], detail: Mapping[str, Any], prefix: str) -> Iterator[Problem]:
    """Yield the problems that one of pydantic's errors reports: several for an unknown section with known names."""
    location = [str(part) for part in detail["loc"]]
    if detail["type"] == "extra_forbidden":
        yield from _unknown(schema, location, detail["input"], prefix)
    else:
        named = location[:-1] if location[-1:] == [KEY_ITSELF] else location
        yield _invalid(".".join(filter(None, [prefix, *named])), detail)


def _unknown(schema: type[BaseModel], location: list[str], value: Any, prefix: str) -> Iterator[Problem]:
    """Yield the problem of an unknown setting, or those of all settings of a section from another trainer."""
    leaves = list(_leaves(value, location))
    if leaves != [location] and any(_renamed(schema, leaf, prefix) for leaf in leaves):
        for leaf in leaves:
            yield _renamed(schema, leaf, prefix) or _unheard_of(schema, leaf, prefix)
    else:
        yield _renamed(schema, location, prefix) or _unheard_of(schema, location, prefix)


def _leaves(value: Any, location: list[str]) -> Iterator[list[str]]:
    """Yield the location of each value that is not a mapping."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, [*location, *str(key).split(".")])
    else:
        yield location


def _renamed(schema: type[BaseModel], location: list[str], prefix: str) -> Problem | None:
    """Return the problem of a former or foreign name; None if the name is in neither table."""
    where = ".".join(filter(None, [prefix, *location]))
    former = former_setting(where)
    if former is not None and _exists(former, schema, prefix):
        return Problem(where, "was renamed", f"use {former}")
    entries = [entry for entry in foreign_names(where) if _exists(entry.setting, schema, prefix)]
    is_ours = location[-1] in {name.rpartition(".")[2] for name in setting_names(schema)}
    if is_ours and where not in {entry.name for entry in entries}:
        return None  # one of our names in the wrong section
    if not entries:
        return None
    systems = " and ".join(f"{system}'s" for system in dict.fromkeys(entry.system for entry in entries))
    return Problem(where, f"this is {systems} name", f"use {_advice(entries)}")


def _exists(setting: str, schema: type[BaseModel], prefix: str) -> bool:
    """Return False for an option that the configured task does not have."""
    option = setting.removeprefix(f"{_TASK_OPTIONS}.")
    return prefix != _TASK_OPTIONS or option == setting or option in schema.model_fields


def _advice(entries: Sequence[ForeignName]) -> str:
    """Return the settings to use, each once, with what is different about them."""
    systems: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        systems.setdefault((entry.setting, entry.note), []).append(entry.system)
    advice = []
    for (setting, note), names in systems.items():
        reader = f"for {' and '.join(names)}" if len(systems) > 1 else ""
        remark = ": ".join(filter(None, [reader, note]))
        advice.append(f"{setting} ({remark})" if remark else setting)
    return " or ".join(advice)


def _unheard_of(schema: type[BaseModel], location: list[str], prefix: str) -> Problem:
    """Return the problem of a name that is misspelled, in the wrong section or unknown."""
    where = ".".join(filter(None, [prefix, *location]))
    parent = _section(schema, location[:-1])
    known = list(parent.model_fields) if parent is not None else []
    elsewhere = [path for path in setting_names(schema) if path.rpartition(".")[2] == location[-1]]
    near = closest(location[-1], known)
    meant = [*elsewhere[:1], *([near] if near else [])]
    if meant:
        return Problem(where, "there is no such setting", f"did you mean {' or '.join(meant)}?")
    choice = (
        f"known here: {', '.join(known)}" if known else "remove it (docs/configuration.md lists all settings)"
    )
    return Problem(where, "there is no such setting", choice)


def _section(schema: type[BaseModel], location: Sequence[str]) -> type[BaseModel] | None:
    """Return the section at `location`; None if the schema has no such section."""
    section: type[BaseModel] | None = schema
    for part in location:
        if part.isdigit():  # an index into a list of sections
            continue
        if section is None or part not in section.model_fields:
            return None
        annotation = section.model_fields[part].annotation
        section = next(
            (
                t
                for t in (annotation, *get_args(annotation))
                if isinstance(t, type) and issubclass(t, BaseModel)
            ),
            None,
        )
    return section


def _invalid(where: str, detail: Mapping[str, Any]) -> Problem:
    """Return the problem of a value that the setting does not accept."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "value_error":
        return Problem(where, str(context["error"]))
    if kind == "missing":
        return Problem(where, "expected a value, got nothing")
    advice = ""
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        near = closest(str(value), choices)
        advice = f"did you mean {near}?" if near else ""
    return Problem(where, f"expected {expected(kind, detail['msg'], context)}, got {value!r}", advice)


def expected(kind: str, message: str, context: Mapping[str, Any]) -> str:
    """Return the description of the values that the setting accepts."""
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind == "string_pattern_mismatch":
        return f"text that matches the pattern {context['pattern']}"
    if kind in ("string_too_short", "string_too_long"):
        limit = "at least" if kind == "string_too_short" else "at most"
        return f"{limit} {context['min_length' if kind == 'string_too_short' else 'max_length']} characters"
    if kind in ("too_short", "too_long"):
        limit = "at least" if kind == "too_short" else "at most"
        length = context["min_length" if kind == "too_short" else "max_length"]
        return f"{limit} {length} {'entry' if length == 1 else 'entries'}"
    if kind.startswith(("greater_than", "less_than")):
        return f"a number {message.removeprefix('Input should be ')}"
    return re.sub(r"^(Input|Value) should (be|have) (a valid )?", "", message)
