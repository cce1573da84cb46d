"""Find or build the Hugging Face directory of a model, which the learner and the rollout workers load.

    starter                 a small character-level model, trained once for the task
    path/to/directory       used as it is
    path/to/model.gguf      converted once
    package:NAME/FILE.gguf  a file in an installed Python package, converted once
    organization/name       downloaded from the Hugging Face hub into the hub's cache

Built and converted models are kept in `model.cache_directory`, under a name that depends on everything they are made
from. On a cluster with several nodes, this directory and the hub's cache (HF_HOME) must be shared by all nodes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.core.config import ModelConfig, RunConfig
from cluster.core.files import new_directory
from cluster.core.reading import open_regular, refuse_special_files
from cluster.core.renamed import former_starter_key
from cluster.models.starter import build_starter, starter_key

Kind = Literal["starter", "directory", "gguf", "hub"]
Progress = Callable[[str], None]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The kind and the location of a model."""

    kind: Kind
    location: str
    """A path, a hub id, or "starter"."""


def locate(model: ModelConfig, hub_token: str | None = None) -> ModelSource:
    """Return the kind and the location of `model.source`, without loading anything.

    Args:
        hub_token: The token for the hub; by default that of this process, if there is one.

    Raises:
        ValueError: if the model does not exist.
    """
    source = model.source
    if source == "starter":
        return ModelSource("starter", source)
    if source.startswith("package:"):
        return ModelSource("gguf", str(_package_file(source.removeprefix("package:"))))
    try:
        path = Path(source).expanduser()
    except RuntimeError as error:
        raise ValueError(f"there is no model {source!r}: {error}") from error
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"there is no file {source}")
        if _magic(path) != b"GGUF":
            raise ValueError(f"{source} is not a GGUF file")
        return ModelSource("gguf", str(path.resolve()))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{source} is not a Hugging Face model directory: it has no config.json")
        refuse_special_files(path)
        return ModelSource("directory", str(path.resolve()))
    if _is_hub_id(source):
        return ModelSource("hub", _known_to_hub(source, hub_token))
    raise ValueError(f"there is no model {source!r}: no such directory, file or hub id")


def _is_hub_id(source: str) -> bool:
    """Return True if a model of this name can only be on the hub."""
    return bool(_HUB_ID.fullmatch(source)) and not source.endswith(".gguf") and not Path(source).is_dir()


def _magic(path: Path) -> bytes:
    """Return the first four bytes of a file, which identify its format."""
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read(4)


def _package_file(name: str) -> Path:
    """Return the path of `PACKAGE/FILE` in an installed package, without importing it.

    Raises:
        ValueError: if the package or the file does not exist.
    """
    package, _, file = name.partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # a parent package is missing, or the name is invalid
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the Python package {package} is not installed (for SmolLM2: make smollm2)")
    path = Path(spec.submodule_search_locations[0]) / file
    if not path.is_file():
        raise ValueError(f"the Python package {package} has no file {file}")
    return path


def _known_to_hub(repository: str, token: str | None) -> str:
    """Return `repository` if it is in the hub's cache or on the hub.

    Raises:
        ValueError: if it is in neither of them, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(repository, "config.json"), str):
        return repository
    try:
        HfApi(token=token).model_info(repository, timeout=10)
    except Exception as error:  # the types depend on the HTTP library of huggingface_hub
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"there is no directory {repository}, and the Hugging Face hub returned no model of this id ({reason})"
        ) from error
    return repository


def ready_directory(config: RunConfig) -> Path | None:
    """Return the model's directory, or None if the model must be built, converted or downloaded first. The hub is not
    asked.

    Raises:
        ValueError: if the model does not exist. A model that could be on the hub counts as existing.
    """
    return None if _is_hub_id(config.model.source) else _ready(config, locate(config.model))


def described_directory(config: RunConfig) -> Path | None:
    """Return the directory with the model's config.json if it is on this machine, which may be the hub's cache. The hub
    is not asked.

    Raises:
        ValueError: if the model does not exist.
    """
    source = config.model.source
    if not _is_hub_id(source):
        return ready_directory(config)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None


def _ready(config: RunConfig, source: ModelSource) -> Path | None:
    """Return the directory of a located model, or None if it is not ready."""
    if source.kind == "directory":
        return Path(source.location)
    if source.kind == "hub":
        return None
    cached = _cache_entry(config, source)
    return cached if (cached / "config.json").is_file() else None


def prepare_model(config: RunConfig, progress: Progress, hub_token: str | None = None) -> Path:
    """Build, convert or download the model if necessary, and return its directory.

    Args:
        progress: Called with a line of text now and then.
        hub_token: The token for the hub; by default that of this process, if there is one.

    Raises:
        ValueError: if the model does not exist.
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
        if not entry.is_dir():  # otherwise another process has finished the same model first
            raise
    return entry


def _build(config: RunConfig, source: ModelSource, directory: Path, progress: Progress) -> None:
    """Train the starter model, or convert the GGUF file, into `directory`."""
    if source.kind == "starter":
        build_starter(config.task, directory, progress)
    else:
        from learner.model.model_files import convert_gguf

        progress(f"converting {Path(source.location).name} (once)")
        convert_gguf(Path(source.location), directory)


def _cache_entry(config: RunConfig, source: ModelSource) -> Path:
    """Return the directory of a built or converted model. Its name depends on everything the model is made from."""
    ingredients: Any
    if source.kind == "starter":
        ingredients, name = former_starter_key(starter_key(config.task)), "starter"
    else:
        file = Path(source.location)
        ingredients, name = [file.name, file.stat().st_size, file.stat().st_mtime_ns], file.stem
    digest = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:12]
    return config.model.cache_directory.expanduser().absolute() / f"{name}-{digest}"
