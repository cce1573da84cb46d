"""From the name of a model to a Hugging Face directory that learner and rollout workers load.

    starter                 a character-level model of about 1M parameters, built here once
    path/to/directory       as it is
    path/to/model.gguf      converted once
    package:NAME/FILE.gguf  the same, from inside an installed Python package
    organisation/name       from the Hugging Face hub, into its own cache

Built and converted models are kept in `model.cache_directory`, under a name that says what they were made from. On
a cluster of several nodes that directory must be one that all nodes see, and so must the hub's (HF_HOME).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.core.config import ModelConfig, RunConfig
from cluster.core.files import new_directory
from cluster.models.starter import build_starter, starter_key

Kind = Literal["starter", "directory", "gguf", "hub"]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What a configured source is. `location` is a path, a hub id, or "starter"."""

    kind: Kind
    location: str


def locate(model: ModelConfig, hub_token: str | None = None) -> ModelSource:
    """Find out what `model.source` names, without loading anything. Without a `hub_token` the hub is shown what this
    process has, if any.

    Raises:
        ValueError: it names nothing that is there.
    """
    source = model.source
    if source == "starter":
        return ModelSource("starter", source)
    if source.startswith("package:"):
        return ModelSource("gguf", str(_package_file(source.removeprefix("package:"))))
    try:
        path = Path(source).expanduser()
    except RuntimeError as error:
        raise ValueError(f"there is no model {source}: {error}") from error
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"there is no file {source}")
        if _beginning(path) != b"GGUF":
            raise ValueError(f"{source} is not a GGUF file")
        return ModelSource("gguf", str(path.resolve()))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{source} is not a Hugging Face model directory: it has no config.json")
        return ModelSource("directory", str(path.resolve()))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return ModelSource("hub", _known_to_hub(source, hub_token))
    raise ValueError(f"there is no model {source}: no such directory, file or hub id")


def _beginning(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(4)


def _package_file(name: str) -> Path:
    package, _, file = name.partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # a parent is missing, or this is no name of a package
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the Python package {package} is not installed (for SmolLM2: make smollm2)")
    path = Path(spec.submodule_search_locations[0]) / file
    if not path.is_file():
        raise ValueError(f"the Python package {package} holds no file {file}")
    return path


def _known_to_hub(repository: str, token: str | None) -> str:
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(repository, "config.json"), str):
        return repository
    try:
        HfApi(token=token).model_info(repository, timeout=10)
    except Exception as error:  # which ones depends on the HTTP library below huggingface_hub
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"there is no directory {repository}, and the Hugging Face hub does not give a model of that id ({reason})"
        ) from error
    return repository


def ready_directory(config: RunConfig) -> Path | None:
    """The model's directory if it can be used at once; None if it must be built, converted or downloaded first."""
    return _ready(config, locate(config.model))


def _ready(config: RunConfig, source: ModelSource) -> Path | None:
    if source.kind == "directory":
        return Path(source.location)
    if source.kind == "hub":
        return None
    cached = _cache_entry(config, source)
    return cached if (cached / "config.json").is_file() else None


def prepare_model(config: RunConfig, progress: Progress, hub_token: str | None = None) -> Path:
    """The model's directory, after building, converting or downloading what is needed. `progress` gets a line now
    and then.

    Raises:
        ValueError: the source names nothing.
    """
    source = locate(config.model, hub_token)
    ready = _ready(config, source)
    if ready is not None:
        return ready
    if source.kind == "hub":
        from huggingface_hub import snapshot_download

        progress(f"downloading {source.location}")
        return Path(
            snapshot_download(
                source.location,
                allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"],
                token=hub_token,
            )
        )
    entry = _cache_entry(config, source)
    try:
        with new_directory(entry) as directory:
            _build(config, source, directory, progress)
    except FileExistsError:
        if not entry.is_dir():  # else another process has finished the same model first
            raise
    return entry


def _build(config: RunConfig, source: ModelSource, directory: Path, progress: Progress) -> None:
    if source.kind == "starter":
        build_starter(config.task, directory, progress)
    else:
        from learner.model.model_files import convert_gguf

        progress(f"converting {Path(source.location).name} (once)")
        convert_gguf(Path(source.location), directory)


def _cache_entry(config: RunConfig, source: ModelSource) -> Path:
    """Where the built model belongs: its name changes when anything it is made from does."""
    made_from: Any
    if source.kind == "starter":
        made_from, name = starter_key(config.task), "starter"
    else:
        file = Path(source.location)
        made_from, name = [file.name, file.stat().st_size, file.stat().st_mtime_ns], file.stem
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]
    return config.model.cache_directory.expanduser().absolute() / f"{name}-{digest}"
