"""Find files that two packages of an environment own. It needs nothing but Python.

    python -m requirements.owned_files            the environment of this interpreter
    python -m requirements.owned_files DIRECTORY  the packages in a directory

Packages that contain the same file overwrite each other, and the last one that is installed wins. Installers run in
parallel, so that the winner differs from one installation to the next, and neither they nor `pip check` report it. The
files of each package, with their hashes, are in its RECORD file.

A file with different contents is a fault, unless `HARMLESS` lists it. A file with the same content in every package is
not: the installation is the same whichever package wins. Such files are only counted, because packages that share a
namespace ship the same `__init__.py` on purpose. A file that its package lists but that is gone is a fault too: this
remains when a package that overwrote another one was removed later.
"""

from __future__ import annotations

import csv
import os
import re
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

HARMLESS: Mapping[str, frozenset[str]] = {
    # The build script of two source trees, which their wheels contain by mistake. No installed package imports it.
    "build_backend.py": frozenset({"flashinfer-python", "torch-c-dlpack-ext"}),
}
"""Files with different contents that cause no harm, with the packages that may own them."""


@dataclass(frozen=True, slots=True)
class Package:
    """An installed package, with the hash of each of its files. A path is relative to the directory of the packages;
    the hash is empty if the package does not say it."""

    name: str
    version: str
    files: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class SharedFile:
    """A file that several packages own."""

    path: str
    owners: tuple[Package, ...]

    @property
    def identical(self) -> bool:
        """True if all owners say the same content."""
        hashes = {owner.files[self.path] for owner in self.owners}
        return len(hashes) == 1 and "" not in hashes

    @property
    def harmless(self) -> bool:
        return self.identical or {owner.name for owner in self.owners} <= HARMLESS.get(self.path, frozenset())


def read_packages(directory: Path) -> list[Package]:
    """Return the packages that are installed in the directory.

    Raises:
        ValueError: if a package has no RECORD, so that its files are unknown.
    """
    return [_read(distribution) for distribution in distributions(path=[str(directory)])]


def _read(distribution: Distribution) -> Package:
    name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
    record = distribution.read_text("RECORD")
    if record is None:
        raise ValueError(
            f"{name} {distribution.version} has no RECORD: install it with pip or uv, from a wheel"
        )
    rows = [row for row in csv.reader(record.splitlines()) if row]
    # Compiled files belong to their sources, and not every installer records them.
    files = {os.path.normpath(path): content for path, content, *_ in rows if not path.endswith(".pyc")}
    return Package(name, distribution.version, files)


def shared_files(packages: Iterable[Package]) -> list[SharedFile]:
    """Return every file that more than one of the packages owns."""
    owners: dict[str, list[Package]] = defaultdict(list)
    for package in packages:
        for path in package.files:
            owners[path].append(package)
    return [SharedFile(path, tuple(found)) for path, found in sorted(owners.items()) if len(found) > 1]


def missing_files(packages: Iterable[Package], directory: Path) -> list[tuple[Package, str]]:
    """Return the files of the packages that are not in the directory."""
    return [
        (package, path)
        for package in packages
        for path in package.files
        if not os.path.lexists(directory / path)
    ]


def report(packages: list[Package], directory: Path) -> tuple[list[str], int]:
    """Return a line for each fault, and the number of files that several packages own with the same content."""
    shared = shared_files(packages)
    by_owners: dict[str, list[str]] = defaultdict(list)
    for file in shared:
        if not file.harmless:
            by_owners[" and ".join(map(str, file.owners))].append(file.path)
    faults = [
        f"{owners} own {_some(paths)}, with different contents: which copy is installed is a matter of chance. "
        "Constrain one of them in pyproject.toml, then run: make lock"
        for owners, paths in by_owners.items()
    ]
    missing: dict[str, list[str]] = defaultdict(list)
    for package, path in missing_files(packages, directory):
        missing[str(package)].append(path)
    faults += [
        f"{package} lacks {_some(paths)}: run make clean, then set up again"
        for package, paths in missing.items()
    ]
    return faults, sum(file.identical for file in shared)


def _some(paths: list[str]) -> str:
    rest = f" and {len(paths) - 3} more files" if len(paths) > 3 else ""
    return ", ".join(paths[:3]) + rest


def main(arguments: list[str]) -> int:
    directory = Path(arguments[0] if arguments else sysconfig.get_path("purelib"))
    try:
        packages = read_packages(directory)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if not packages:
        print(f"there are no packages in {directory}", file=sys.stderr)
        return 1
    faults, identical = report(packages, directory)
    for fault in faults:
        print(fault, file=sys.stderr)
    print(
        f"{len(packages)} packages with {sum(len(one.files) for one in packages)} files in {directory}: "
        f"{len(faults)} faults, {identical} files with the same content in several packages"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
