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

import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from cluster.core.config import ModelConfig, RunConfig
from cluster.models.starter import build_starter, starter_recipe

Kind = Literal["starter", "directory", "gguf", "hub"]
Progress = Callable[[str], None]

_LOCK = "lock"
"""In the scratch directory of a build, and held by its process for as long as that lives."""


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
    with _appearing_whole(entry) as directory:
        if source.kind == "starter":
            build_starter(config.task, directory, progress)
        else:
            from learner.model.gguf import convert_gguf

            progress(f"converting {Path(source.location).name} (once)")
            convert_gguf(Path(source.location), directory)
    return entry


def _cache_entry(config: RunConfig, source: ModelSource) -> Path:
    """Where the built model belongs: its name changes when anything it is made from does."""
    made_from: Any
    if source.kind == "starter":
        made_from, name = starter_recipe(config.task), "starter"
    else:
        file = Path(source.location)
        made_from, name = [file.name, file.stat().st_size, file.stat().st_mtime_ns], file.stem
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]
    return config.model.cache_directory.expanduser().absolute() / f"{name}-{digest}"


@contextmanager
def _appearing_whole(path: Path) -> Iterator[Path]:
    """A directory that becomes `path` when the block succeeds, and vanishes when it does not.

    A build that is killed cannot clear away what it began; the next one does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_dead_builds(path.parent)
    scratch = Path(tempfile.mkdtemp(prefix=f"{_scratch_prefix()}{path.name}-", dir=path.parent))
    with tempfile.NamedTemporaryFile(dir=scratch, delete=False) as lock:
        try:
            _try_lock(lock)
            os.rename(lock.name, scratch / _LOCK)  # nobody finds it before it is held
            directory = scratch / "model"
            directory.mkdir()
            yield directory
            try:
                os.rename(directory, path)
            except OSError:
                if not path.is_dir():  # else somebody else finished first, with the same result
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _scratch_prefix() -> str:
    """It names this machine, for on some shared file systems locks are not seen from other machines."""
    return f".building-{platform.node()}-"


def _sweep_dead_builds(cache: Path) -> None:
    """Delete the scratch directories of builds on this machine that were killed: nobody holds their lock."""
    for scratch in cache.glob(f"{_scratch_prefix()}*"):
        try:
            lock = open(scratch / _LOCK, "r+")
        except (FileNotFoundError, PermissionError):  # just begun or just gone; somebody else's
            continue
        with lock:
            if _try_lock(lock):
                shutil.rmtree(scratch, ignore_errors=True)


def _try_lock(file: IO[Any]) -> bool:
    """False if another process holds the lock, or the file system has no locks: then nothing is ever swept."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
