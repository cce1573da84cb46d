"""Pack the working tree into a zip file, which Ray unpacks as the job's working directory on every node. Ray-free."""

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
"""The folder in the package for a configuration from outside the working tree."""
MAX_PACKAGE_MIB = 100
"""The limit of Ray's job server."""
EXCLUDED = (
    # Files that can be created again, or that the job does not need.
    ".git",
    ".venv*",
    "__pycache__",
    "*.py[cod]",
    ".*_cache",
    ".hypothesis",
    "runs",
    "wandb",
    "node_modules",
    # Files that may contain secrets.
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
"""Names of files and folders that are never sent, anywhere in the tree."""
_EPOCH = (1980, 1, 1, 0, 0, 0)


class PackageRefusedError(ValueError):
    """The working tree cannot be sent. The message is one line with the reason and the fix."""


@dataclass(frozen=True, slots=True)
class Package:
    """The files that are sent with a job."""

    files: Mapping[str, Path]
    """The files by their path in the job's working directory."""
    config: str
    """The path of the run's configuration in the job's working directory."""

    @property
    def size(self) -> int:
        """The size in bytes before compression."""
        return sum(file.stat().st_size for file in self.files.values())

    def largest(self, count: int = 3) -> str:
        """Return the names and sizes of the largest files, as text for a message."""
        sizes = sorted(((file.stat().st_size, name) for name, file in self.files.items()), reverse=True)
        return ", ".join(f"{name} ({size / 2**20:.1f} MiB)" for size, name in sizes[:count])

    def write(self, path: Path) -> None:
        """Write the zip file. Equal contents give equal zip files, so that Ray recognizes a package that it has.

        Raises:
            PackageRefusedError: if the zip file is larger than the job server accepts.
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
                f"the packed working tree has {packed / 2**20:.0f} MiB, and Ray accepts {MAX_PACKAGE_MIB}; the largest "
                f"files: {self.largest()}; exclude files that the run does not need: --exclude PATTERN, or .gitignore"
            )


def package(tree: Path, config_file: Path, exclude: Sequence[str] = (), project: Path = ROOT) -> Package:
    """Select the files of the working tree, the configuration, and this project if the tree is a different one.

    In a git work tree, all files are selected that git does not ignore, including new ones.

    Args:
        exclude: Patterns for the names or paths of more files to exclude.

    Raises:
        PackageRefusedError: if a pattern excludes the configuration.
    """
    patterns = (*EXCLUDED, *exclude)
    files = {name: tree / name for name in _names(tree) if not _is_excluded(name, patterns)}
    if not (tree / "launch.py").is_file():
        for part in PROJECT_PARTS:
            found = [project / part] if (project / part).is_file() else sorted((project / part).rglob("*"))
            inside = ((str(PurePosixPath(file.relative_to(project))), file) for file in found)
            files |= {
                name: file for name, file in inside if file.is_file() and not _is_excluded(name, patterns)
            }
    config_file = config_file.absolute()
    if config_file.is_relative_to(tree):
        config = str(PurePosixPath(config_file.relative_to(tree)))
        if any(fnmatch.fnmatch(config, pattern) for pattern in exclude):
            raise PackageRefusedError(
                f"{config} is the run's configuration, and --exclude matches it: use a narrower pattern"
            )
    else:
        config = f"{CONFIG_FOLDER}/{config_file.name}"
    return Package({**files, config: config_file}, config)


def _names(tree: Path) -> Iterator[str]:
    """Yield the paths of the tree's files, with `/` as separator."""
    command = ["git", "-C", str(tree), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):  # git is not installed, or this is not a work tree
        for folder, folders, names in os.walk(tree):
            folders[:] = [name for name in folders if not _is_excluded(name, EXCLUDED)]
            yield from (str(PurePosixPath(Path(folder, name).relative_to(tree))) for name in names)
    else:
        yield from (name for name in listed if name and (tree / name).is_file())


def _is_excluded(name: str, patterns: Sequence[str]) -> bool:
    parts = name.split("/")
    beginnings = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    return any(fnmatch.fnmatch(part, pattern) for part in (*parts, *beginnings) for pattern in patterns)
