"""The splits of a source: a data file, a directory, or a data set on the hub. Torch-free.

`datasets` finds the files of a directory or a hub data set, by the usual names (`train.jsonl`,
`data/train-00000-of-00001.parquet`, `test/…`) or by the card in README.md. Their contents are read by `formats.py`, not
by `datasets`, which guesses types: it makes timestamps of texts that look like dates, and 7 of the cell 007. The same
file therefore gives the same rows, wherever it lies. `datasets` reads only what has no types to guess: what
`save_to_disk` wrote, and formats other than JSON, CSV and Parquet.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cluster.core.reading import read_bytes, refuse_special_files
from reward.dataset.formats import SUFFIXES, read_file, suffix_of, table_rows
from reward.dataset.values import DataError, Located, plain_rows

Splits = Mapping[str, Callable[[], list[Located]]]
"""The readers of the splits, by name."""
UNDIVIDED = ""
"""The name of the only split of a source that has no splits, such as a file."""

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_GUESSED_FORMATS = ("json", "csv")
_IGNORED_JSON = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"}
_HUB_FILE = re.compile(r"hf://datasets/[^@]*@[^/]*/")
# The fields of a builder's configuration that do not change how a file is read.
_NEUTRAL = {"name", "version", "data_dir", "data_files", "description", "features", "sep", "delimiter"}


def splits_of(source: str, subset: str | None) -> Splits:
    """Return the splits of a source. Nothing but its structure is read yet.

    Raises:
        DataError: if there is no such source, or it cannot be read as it is.
        Exception: whatever `datasets` and its libraries raise.
    """
    if not source.strip():
        raise DataError("the source of the data is empty text; name a file, a directory or a hub id")
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        refuse_special_files(path, below=True)  # `datasets` would wait for a pipe
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return _saved(path, source)
        _refuse_several_formats(path, source)
        return _files(_builder(str(path.resolve()), subset), source, path.resolve())
    if path.is_file():
        return {UNDIVIDED: partial(read_file, path, path.name)}
    if suffix_of(source) or not _HUB_ID.fullmatch(source):
        raise DataError(f"there is no file {path} (searched from {Path.cwd()})")
    return _hub(source, subset)


def _saved(path: Path, source: str) -> Splits:
    """Return the splits of a directory that `save_to_disk` wrote."""
    import datasets

    loaded = datasets.load_from_disk(str(path))
    if isinstance(loaded, datasets.DatasetDict):
        return {name: partial(_arrow_rows, part, f"{source}, {name} row") for name, part in loaded.items()}
    return {UNDIVIDED: partial(_arrow_rows, loaded, f"{source}, row")}


def _arrow_rows(dataset: Any, where: str) -> list[Located]:
    return plain_rows(table_rows(dataset.with_format("arrow")[:], where))


def _refuse_several_formats(directory: Path, source: str) -> None:
    """Raise DataError if a directory has files of several formats, of which `datasets` would drop all but one.

    A card that lists the data files makes the choice.
    """
    card = directory / "README.md"
    if card.is_file() and b"data_files" in read_bytes(card):
        return
    files = [path for path in directory.rglob("*") if not _is_hidden(path.relative_to(directory))]
    found = {_format_of(file.name) for file in files if file.name not in _IGNORED_JSON and file.is_file()} - {
        None
    }
    if len(found) > 1:
        raise DataError(
            f"{source} has data files of several formats ({', '.join(sorted(map(str, found)))}): name one file, or "
            "keep one format in the directory"
        )


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)


def _format_of(name: str) -> str | None:
    suffix = suffix_of(name)
    return ".json" if suffix in (".jsonl", ".ndjson") else suffix


def _builder(path: str, subset: str | None) -> Any:
    import datasets

    return datasets.load_dataset_builder(path, subset)


def _hub(source: str, subset: str | None) -> Splits:
    """Return the splits of a data set on the hub, or of its files that were downloaded earlier if there is no hub."""
    import huggingface_hub

    builder: Any = None
    unreachable: Exception | None = None
    try:
        builder = _builder(source, subset)
    except Exception as error:
        if not _is_unreachable(error):
            raise
        unreachable = error
    if builder is not None and _format_of_builder(builder) != "cache":
        return _files(builder, source, None)
    try:
        downloaded = huggingface_hub.snapshot_download(source, repo_type="dataset", local_files_only=True)
    except huggingface_hub.errors.LocalEntryNotFoundError:
        if unreachable is not None:
            raise unreachable from None
    else:
        return _files(_builder(downloaded, subset), source, Path(downloaded))
    # The copy that an earlier `load_dataset` made.
    if builder.info.builder_name in _GUESSED_FORMATS:
        raise DataError(
            f"the data set {source} is neither on the hub nor downloaded, and the copy that `datasets` keeps has types "
            "that it guessed"
        )
    return _other(builder, source)


def _is_unreachable(error: Exception) -> bool:
    """Return True if the hub could not be asked, in contrast to an answer that there is no such data set.

    The client of the hub raises the errors of its HTTP library (`httpx` or `httpx2`, by its version). Their base class
    for everything before the answer is TransportError.
    """
    if isinstance(error, ConnectionError):
        return True
    return any(base.__name__ == "TransportError" for base in type(error).__mro__)


def _format_of_builder(builder: Any) -> str:
    """Return the format that a builder reads, such as `json`, or `cache` for the copy of an earlier `load_dataset`."""
    return type(builder).__module__.rpartition(".")[2]


def _files(builder: Any, source: str, root: Path | None) -> Splits:
    """Return the splits that `datasets` has found. Those of known formats are read by our own readers."""
    if _format_of_builder(builder) not in (*_GUESSED_FORMATS, "parquet"):
        return _other(builder, source)
    files: Mapping[str, list[str]] = builder.config.data_files
    names = {split: [_shown(str(file), source, root) for file in found] for split, found in files.items()}
    delimiter = getattr(builder.config, "sep", None)
    _refuse_settings(builder.config, source)
    return {
        str(split): partial(_read_all, [str(file) for file in found], names[split], delimiter)
        for split, found in files.items()
    }


def _shown(file: str, source: str, root: Path | None) -> str:
    """Return a file's name for messages: inside its directory, or after the id of its data set."""
    if root is not None and Path(file).is_relative_to(root):
        return str(Path(file).relative_to(root))
    return _HUB_FILE.sub(f"{source}/", file)


def _refuse_settings(config: Any, source: str) -> None:
    """Raise DataError if the card of the data set names settings of a reader that our readers do not have."""
    usual = type(config)()
    changed = [
        field.name
        for field in dataclasses.fields(config)
        if field.name not in _NEUTRAL and getattr(config, field.name) != getattr(usual, field.name)
    ]
    if changed:
        raise DataError(
            f"the card of {source} sets {', '.join(changed)}, without which its files would be misread: save them as "
            f"{SUFFIXES[0]} or .parquet"
        )


def _read_all(files: list[str], names: list[str], delimiter: str | None) -> list[Located]:
    """Download the files, if they are on the hub, and read them."""
    from datasets import DownloadManager

    local = [file if os.path.isabs(file) else DownloadManager().download(file) for file in files]
    tabs = delimiter if delimiter != "," else None  # the usual one of each suffix
    return [row for path, name in zip(local, names, strict=True) for row in read_file(Path(path), name, tabs)]


def _other(builder: Any, source: str) -> Splits:
    """Return the splits of another format, which `datasets` reads."""

    def read(split: str) -> list[Located]:
        return _arrow_rows(builder.as_dataset(split), f"{source}, {split} row")

    builder.download_and_prepare()
    return {str(split): partial(read, str(split)) for split in builder.info.splits}
