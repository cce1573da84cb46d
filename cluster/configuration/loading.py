"""Load a `RunConfig` from a YAML file and overrides, and report every mistake in them. Torch-free.

A mistake does not hide other mistakes: invalid values are reported and replaced by their defaults, and the rest is
checked as usual.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from cluster.configuration.messages import KEY_ITSELF, problems_of
from cluster.core.config import RunConfig
from cluster.core.errors import RefusedError
from cluster.core.problem import Problem
from cluster.core.reading import read_yaml_text, shown_path
from cluster.core.renamed import current_settings

ModelT = TypeVar("ModelT", bound=BaseModel)
_OVERRIDE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*=")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that was read, with its problems. It may be used if the list is empty."""

    config: RunConfig
    """The valid settings of the file. Invalid ones have their defaults."""
    problems: tuple[Problem, ...]
    readable: bool = True
    """False if the file could not be read at all. Then `config` consists of defaults."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Read `path` and apply overrides such as `rollout.workers=4`."""
    return _loaded(path, *_read_file(path), overrides)


def _loaded(path: Path, layers: list[Any], problems: list[Problem], overrides: Sequence[str]) -> Loaded:
    readable = bool(layers)
    merged = layers[0] if layers else OmegaConf.create()
    for override in overrides:
        try:
            if not _OVERRIDE.match(override):
                raise ValueError("expected the name of a setting, followed by = and a value")
            merged.merge_with(OmegaConf.from_dotlist([override]))
        except TypeError:  # OmegaConf's answer to a list in the place of a section
            problems.append(
                Problem(override, "a list cannot replace a section", "write it as rollout.workers=4")
            )
        except (ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
            problems.append(
                Problem(override, f"this is not a valid override ({error})", "write it as rollout.workers=4")
            )
    config, schema_problems = validate(RunConfig, _resolved(merged, path, problems))
    return Loaded(config, (*problems, *schema_problems), readable)


def load_run_config(config_file: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Read the configuration that a run wrote, perhaps with an earlier version's names, and apply overrides."""
    layers, problems = _read_file(config_file)
    current = [
        OmegaConf.create(current_settings(cast(dict[str, Any], OmegaConf.to_container(layer))))
        for layer in layers
    ]
    return _loaded(config_file, current, problems, overrides)


def read_yaml(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """Return the file's settings with resolved interpolations, and its problems. A file that cannot be read has no
    settings."""
    layers, problems = _read_file(path)
    return _resolved(layers[0], path, problems) if layers else {}, problems


def _read_file(path: Path) -> tuple[list[Any], list[Problem]]:
    """Return a list with the content of the file, which is empty if the file cannot be read, and its problems."""
    try:
        loaded = OmegaConf.load(io.StringIO(read_yaml_text(path)))
        if not OmegaConf.is_dict(loaded):
            raise ValueError("the file is not a mapping of settings")
    except FileNotFoundError:
        return [], [
            Problem(
                shown_path(path), "there is no such file", "give a configuration, such as configs/demo.yaml"
            )
        ]
    except RefusedError as error:
        return [], [Problem(shown_path(path), str(error).removeprefix(shown_path(path)).lstrip(": "))]
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        return [], [Problem(shown_path(path), str(error) or type(error).__name__, "fix the file")]
    return [loaded], []


def _resolved(node: Any, path: Path, problems: list[Problem]) -> dict[str, Any]:
    """Return the settings as plain values with string keys. A value that refers to a setting that does not exist is
    reported and left out."""
    values: dict[str, Any] = {}
    for key in node:
        try:
            value = node[key]
            if OmegaConf.is_dict(value):
                value = _resolved(value, path, problems)
            elif OmegaConf.is_list(value):
                value = OmegaConf.to_container(value, resolve=True)
        except OmegaConfBaseException as error:
            problems.append(Problem(str(path), str(error), "fix the interpolation"))
            continue
        values[str(key)] = value
    return values


def validate(
    schema: type[ModelT], values: Mapping[str, Any], prefix: str = ""
) -> tuple[ModelT, list[Problem]]:
    """Return the valid values as `schema`, and the problems of the others, which get their defaults.

    All fields of `schema` must have defaults. A section below it may have fields without one: if such a field is
    missing, the whole section gets its default. If values contradict each other, all of their section get theirs.
    """
    problems: list[Problem] = []
    while True:  # a removal may leave a section without a field that it needs, which is then removed too
        try:
            return schema.model_validate(values), problems
        except ValidationError as error:
            if not values:
                raise  # a field of `schema` has no default
            details = error.errors(include_url=False)
        # What is missing after a removal is its consequence. Contradictions were not looked for before it.
        told = [detail for detail in _told(details) if not problems or detail["type"] != "missing"]
        problems += [problem for detail in told for problem in problems_of(schema, detail, prefix)]
        values = _without(values, [tuple(detail["loc"]) for detail in details])


def _told(details: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield pydantic's errors without those of values under an invalid key: the key is what must be corrected."""
    keys = [detail["loc"] for detail in details if detail["loc"][-1:] == (KEY_ITSELF,)]
    for detail in details:
        if detail["loc"] in keys or not any(detail["loc"][: len(key) - 1] == key[:-1] for key in keys):
            yield detail


def _without(values: Mapping[str, Any], locations: Sequence[tuple[int | str, ...]]) -> dict[str, Any]:
    """Return a copy without the values at `locations`. If there is no value at a location (it is inside a list, a field
    is missing, or it names a key itself), the nearest value around it is removed; around an empty one that is all."""
    if any(not location or location[0] not in values for location in locations):
        return {}
    kept: dict[str, Any] = {}
    for key, value in values.items():
        below = [location[1:] for location in locations if location[0] == key]
        if any(not rest or not isinstance(value, Mapping) or rest[0] not in value for rest in below):
            continue
        kept[key] = _without(value, below) if below else value
    return kept
