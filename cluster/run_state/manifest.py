"""The manifest of a checkpoint: which files it has, their sizes and hashes. Written last, it makes them a checkpoint.
Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from learner.state.state_files import CheckpointError, FileRecord, record

FILE_NAME = "COMPLETE"
FORMAT = 2
"""1 had sizes alone."""
_READERS = 8
"""Files hashed at a time: hashing is done outside Python's lock, and storage is faster with several readers."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Files by their path below the checkpoint's directory. The manifest itself is not among them."""

    files: Mapping[str, FileRecord]

    def to_json(self) -> str:
        files = {name: asdict(self.files[name]) for name in sorted(self.files)}
        return json.dumps({"format": FORMAT, "files": files}, indent=2)

    @staticmethod
    def read(checkpoint: Path) -> Manifest:
        """The manifest of the checkpoint in a directory.

        Raises:
            OSError: there is none.
            ValueError: it is damaged.
            CheckpointError: another version of this program wrote it.
        """
        try:
            content = json.loads((checkpoint / FILE_NAME).read_text(encoding="utf-8"))
            # Format 1 is a mapping of sizes.
            written = content["format"] if "files" in content else 1
            if written == FORMAT:
                return Manifest({name: FileRecord(**entry) for name, entry in content["files"].items()})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{FILE_NAME} cannot be read ({type(error).__name__}: {error})") from error
        raise CheckpointError(
            f"{checkpoint} was written in format {written} by another version of this program, which knows {FORMAT}: "
            "go on with that version, or train under another name"
        )

    def size_fault(self, checkpoint: Path) -> str | None:
        """The first file that is missing or has another size, and how; None if there is none. Reads no file."""
        for name, expected in self.files.items():
            try:
                size = (checkpoint / name).stat().st_size
            except FileNotFoundError:
                return f"{name} is missing"
            if size != expected.size:
                return f"{name} has {size} bytes, expected {expected.size}"
        return None

    def content_fault(self, checkpoint: Path) -> str | None:
        """The first file that is not what was written, and how; None if there is none. Reads all of it."""
        with ThreadPoolExecutor(_READERS) as pool:
            faults = pool.map(lambda name: self._fault(checkpoint, name), self.files)
            return next((fault for fault in faults if fault), None)

    def _fault(self, checkpoint: Path, name: str) -> str | None:
        try:
            found = record(checkpoint / name)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found != (expected := self.files[name]):
            return f"{name} has SHA-256 {found.sha256}, expected {expected.sha256}"
        return None


def files_in(checkpoint: Path) -> Iterator[str]:
    """What a manifest has to name."""
    for file in sorted(checkpoint.rglob("*")):
        if file.is_file() and file != checkpoint / FILE_NAME:
            yield str(file.relative_to(checkpoint))
