"""What travels with a job: the working tree as a zip file, from which Ray makes the job's working directory on every
node. Ray-free."""

from __future__ import annotations

import fnmatch
import os
import subprocess
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cluster.core.project import ROOT

PROJECT_PARTS = ("cluster", "rollout", "learner", "reward", "launch.py")
CONFIG_FOLDER = "submitted"
"""Where a configuration travels that is not part of the working tree."""
MAX_PACKAGE_MIB = 100
"""Ray's job server refuses more."""
LEFT_OUT = (
    # What can be made again, or is none of the job's business.
    ".git",
    ".venv*",
    "__pycache__",
    "*.py[cod]",
    ".*_cache",
    ".hypothesis",
    "runs",
    "wandb",
    "node_modules",
    # What may hold secrets.
    ".env",
    ".env.*",
    ".netrc",
    ".ssh",
    ".aws",
    ".ray",
    "auth_token",
    "*.pem",
    "*.key",
    "id_rsa*",
    "id_ed25519*",
    "credentials*",
)
"""Names of files and folders, anywhere in the tree."""
_EPOCH = (1980, 1, 1, 0, 0, 0)


class PackageRefusedError(ValueError):
    """The working tree cannot travel; the message says why, and how to mend it."""


@dataclass(frozen=True, slots=True)
class Package:
    """Files by the path that they will have in the job's working directory."""

    files: Mapping[str, Path]
    config: str
    """Which of them is the run's configuration."""

    @property
    def size(self) -> int:
        """Bytes, before they are compressed."""
        return sum(file.stat().st_size for file in self.files.values())

    def largest(self, count: int = 3) -> str:
        """The largest files, in words."""
        sizes = sorted(((file.stat().st_size, name) for name, file in self.files.items()), reverse=True)
        return ", ".join(f"{name} ({size / 2**20:.1f} MiB)" for size, name in sizes[:count])

    def write(self, path: Path) -> None:
        """As a zip file. Equal files make an equal file, so that Ray sees what it has already.

        Raises:
            PackageRefusedError: it is too large to be sent.
        """
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(self.files):
                file = self.files[name]
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (0o755 if os.access(file, os.X_OK) else 0o644) << 16
                archive.writestr(entry, file.read_bytes())
        if (packed := path.stat().st_size) > MAX_PACKAGE_MIB * 2**20:
            raise PackageRefusedError(
                f"the working tree packs to {packed / 2**20:.0f} MiB, and Ray takes {MAX_PACKAGE_MIB}; the largest "
                f"files: {self.largest()}; leave out what the run does not need: --exclude PATTERN, or .gitignore"
            )


def package(tree: Path, config_file: Path, exclude: Sequence[str] = (), project: Path = ROOT) -> Package:
    """The files of the working tree, with the configuration, and this project where the tree is another one's.

    In a git work tree they are those that git does not ignore, new ones included. `exclude` are patterns for the names
    or paths of more files to leave out.

    Raises:
        PackageRefusedError: the configuration would be left out.
    """
    patterns = (*LEFT_OUT, *exclude)
    files = {name: tree / name for name in _names(tree) if not _left_out(name, patterns)}
    if not (tree / "launch.py").is_file():
        for part in PROJECT_PARTS:
            found = [project / part] if (project / part).is_file() else sorted((project / part).rglob("*"))
            inside = ((str(PurePosixPath(file.relative_to(project))), file) for file in found)
            files |= {name: file for name, file in inside if file.is_file() and not _left_out(name, patterns)}
    config_file = config_file.absolute()
    if config_file.is_relative_to(tree):
        config = str(PurePosixPath(config_file.relative_to(tree)))
        if any(fnmatch.fnmatch(config, pattern) for pattern in exclude):
            raise PackageRefusedError(f"{config} is the run's configuration: --exclude must not leave it out")
    else:
        config = f"{CONFIG_FOLDER}/{config_file.name}"
    return Package({**files, config: config_file}, config)


def _names(tree: Path) -> Iterator[str]:
    """Of the tree's files, as paths with `/`."""
    command = ["git", "-C", str(tree), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):  # no git, or no work tree of it
        for folder, folders, names in os.walk(tree):
            folders[:] = [name for name in folders if not _left_out(name, LEFT_OUT)]
            yield from (str(PurePosixPath(Path(folder, name).relative_to(tree))) for name in names)
    else:
        yield from (name for name in listed if name and (tree / name).is_file())


def _left_out(name: str, patterns: Sequence[str]) -> bool:
    parts = name.split("/")
    beginnings = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    return any(fnmatch.fnmatch(part, pattern) for part in (*parts, *beginnings) for pattern in patterns)
