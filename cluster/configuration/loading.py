"""From a YAML file and overrides to a `RunConfig`, or to a list of everything that is wrong with it. Torch-free.

A mistake in one place does not hide those in others: what is wrong is reported and set aside, and the rest is
checked all the same.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from cluster.core.config import RunConfig
from cluster.core.problem import Problem

ModelT = TypeVar("ModelT", bound=BaseModel)
_OVERRIDE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*=")


@dataclass(frozen=True, slots=True)
class Loaded:
    """`config` holds everything that could be read; what was wrong in it has its default. It may be used if there
    are no problems."""

    config: RunConfig
    problems: tuple[Problem, ...]
    readable: bool = True
    """False: nothing of the file could be read, and `config` says nothing about the run."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Read `path` and apply overrides like `rollout.workers=4`."""
    layers, problems = _read_file(path)
    readable = bool(layers)
    for override in overrides:
        try:
            if not _OVERRIDE.match(override):
                raise ValueError("it does not begin with the name of a setting and =")
            layers.append(OmegaConf.from_dotlist([override]))
        except (ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
            problems.append(
                Problem(override, f"it is not an override ({error})", "write it as rollout.workers=4")
            )
    values = _resolved(OmegaConf.merge(*layers), path, problems) if layers else {}
    config, schema_problems = validate(RunConfig, values)
    return Loaded(config, (*problems, *schema_problems), readable)


def read_yaml(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """The file's settings, interpolations resolved (none, if it cannot be read), and what is wrong with it."""
    layers, problems = _read_file(path)
    return _resolved(layers[0], path, problems) if layers else {}, problems


def _read_file(path: Path) -> tuple[list[Any], list[Problem]]:
    """What is in the file, as a list of at most one, and what is wrong with it."""
    try:
        loaded = OmegaConf.load(path)
        if not OmegaConf.is_dict(loaded):
            raise ValueError("it is not a mapping of settings")
    except FileNotFoundError:
        return [], [
            Problem(str(path), "there is no such file", "name a configuration, such as configs/demo.yaml")
        ]
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        return [], [Problem(str(path), str(error), "mend the file")]
    return [loaded], []


def _resolved(node: Any, path: Path, problems: list[Problem]) -> dict[str, Any]:
    """As plain values with keys of text. A value whose interpolation leads nowhere is reported and left out."""
    values: dict[str, Any] = {}
    for key in node:
        try:
            value = node[key]
            if OmegaConf.is_dict(value):
                value = _resolved(value, path, problems)
            elif OmegaConf.is_list(value):
                value = OmegaConf.to_container(value, resolve=True)
        except OmegaConfBaseException as error:
            problems.append(Problem(str(path), str(error), "mend the interpolation"))
            continue
        values[str(key)] = value
    return values


def validate(
    schema: type[ModelT], values: Mapping[str, Any], prefix: str = ""
) -> tuple[ModelT, list[Problem]]:
    """The values as `schema`, without those that are wrong, and what is wrong with them. All fields must have
    defaults."""
    try:
        return schema.model_validate(values), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    problems = [_problem(schema, detail, prefix) for detail in details]
    repaired = _without(values, [tuple(detail["loc"]) for detail in details])
    return schema.model_validate(repaired), problems


def _problem(schema: type[BaseModel], detail: Any, prefix: str) -> Problem:
    location = [str(part) for part in detail["loc"]]
    where = ".".join([*([prefix] if prefix else []), *location])
    if detail["type"] == "extra_forbidden":
        known = list(_section(schema, location[:-1]).model_fields)
        elsewhere = [path for path in setting_names(schema) if path.rpartition(".")[2] == location[-1]]
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        meant = [*elsewhere[:1], *near]
        fix = f"did you mean {' or '.join(meant)}?" if meant else f"known here: {', '.join(known)}"
        return Problem(where, "there is no such setting", fix)
    message = detail["msg"][0].lower() + detail["msg"][1:]
    if detail["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
        near = difflib.get_close_matches(str(detail["input"]), choices, n=1, cutoff=0.5)
        message = "".join(f"did you mean {choice}? " for choice in near) + message
    return Problem(where, f"{detail['input']!r} will not do", message)


def _section(schema: type[BaseModel], location: Sequence[str]) -> type[BaseModel]:
    for part in location:
        if part.isdigit():  # a place in a list of sections
            continue
        annotation = schema.model_fields[part].annotation
        schema = next(
            t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel)
        )
    return schema


def setting_names(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All settings of a schema, dotted."""
    for name, field in schema.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from setting_names(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _without(values: Mapping[str, Any], locations: Sequence[tuple[int | str, ...]]) -> dict[str, Any]:
    """A copy without the values at `locations`; a location inside a list takes the whole list along."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        below = [location[1:] for location in locations if location[0] == key]
        if any(not rest or not isinstance(value, Mapping) for rest in below):
            continue
        kept[key] = _without(value, below) if below else value
    return kept
