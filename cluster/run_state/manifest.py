"""The manifest of a checkpoint: its files with their sizes and hashes. It is written last and marks the checkpoint as
complete. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.core.errors import RefusedError
from cluster.core.reading import read_text
from learner.state.state_files import CheckpointError, FileRecord, record

FILE_NAME = "COMPLETE"
INCOMPLETE_NAME = "INCOMPLETE"
"""The file that stands for the manifest while the checkpoint is written (empty), or deleted (the former manifest)."""
FORMAT = 2
"""The version of the manifest's format. Format 1 had only sizes."""
_READERS = 8
"""The number of files hashed in parallel: hashing releases Python's lock, and storage serves several readers faster."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of a checkpoint by their path in its directory, without the manifest itself."""

    files: Mapping[str, FileRecord]

    def to_json(self) -> str:
        files = {name: asdict(self.files[name]) for name in sorted(self.files)}
        return json.dumps({"format": FORMAT, "files": files}, indent=2)

    @staticmethod
    def read(checkpoint: Path, name: str = FILE_NAME) -> Manifest:
        """Read the manifest of the checkpoint in a directory, or the former one that has another name.

        Raises:
            OSError: if there is no manifest.
            ValueError: if it is damaged.
            CheckpointError: if another version of this program wrote it in another format.
        """
        try:
            content = json.loads(read_text(checkpoint / name))
            # Format 1 is a mapping of sizes.
            written = content["format"] if "files" in content else 1
            if written == FORMAT:
                return Manifest({name: FileRecord(**entry) for name, entry in content["files"].items()})
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(f"{name} cannot be read ({type(error).__name__}: {error})") from error
        raise CheckpointError(
            f"{checkpoint} was written in format {written} by another version of this program, and this one reads "
            f"format {FORMAT}: resume with that version, or train under another name"
        )

    def size_fault(self, checkpoint: Path) -> str | None:
        """Return the fault of the first file that is missing or has another size, or None. No file is read."""
        for name, expected in self.files.items():
            try:
                size = (checkpoint / name).stat().st_size
            except FileNotFoundError:
                return f"{name} is missing"
            if size != expected.size:
                return f"{name} has {size} bytes, expected {expected.size}"
        return None

    def content_fault(self, checkpoint: Path) -> str | None:
        """Return the fault of the first file whose content has changed, or None. All files are read."""
        with ThreadPoolExecutor(_READERS) as pool:
            faults = pool.map(lambda name: self._fault(checkpoint, name), self.files)
            return next((fault for fault in faults if fault), None)

    def _fault(self, checkpoint: Path, name: str) -> str | None:
        try:
            found = record(checkpoint / name)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        except RefusedError as error:
            return str(error)
        if found != (expected := self.files[name]):
            return f"{name} has SHA-256 {found.sha256}, expected {expected.sha256}"
        return None


def files_in(checkpoint: Path) -> Iterator[str]:
    """Yield the paths of the files that a manifest has to list."""
    for file in sorted(checkpoint.rglob("*")):
        if file.is_file() and file not in (checkpoint / FILE_NAME, checkpoint / INCOMPLETE_NAME):
            yield str(file.relative_to(checkpoint))
