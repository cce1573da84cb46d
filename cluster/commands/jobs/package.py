"""Pack the working tree into a zip file, which Ray unpacks as the job's working directory on every node. Ray-free."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cluster.core.errors import RefusedError
from cluster.core.project import ROOT
from cluster.core.reading import kind_of, read_bytes, shown_path

PROJECT_PARTS = ("cluster", "rollout", "learner", "reward", "launch.py")
CONFIG_FOLDER = "submitted"
"""The folder in the package for a configuration from outside the working tree."""
MAX_PACKAGE_MIB = 100
"""The limit of Ray's job server."""
MAX_FILE_MIB = 1024
"""The limit of a file before compression."""
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
)
"""Names of files and folders that are never sent, anywhere in the tree."""
SECRETS = (
    *(
        ".env",
        ".env.*",
        "*.env",
        ".envrc",
        ".netrc",
        "_netrc",
        ".pypirc",
        ".git-credentials",
        ".npmrc",
        ".yarnrc*",
    ),
    *(
        ".ssh",
        ".aws",
        ".azure",
        ".gcloud",
        ".gnupg",
        ".ray",
        ".kube",
        ".docker",
        ".dockercfg",
        ".kaggle",
        ".huggingface",
    ),
    *(
        "*.pem",
        "*.key",
        "*.p12",
        "*.pfx",
        "*.p8",
        "*.ppk",
        "*.jks",
        "*.keystore",
        "*.kdbx",
        "*.ovpn",
        "*.tfstate*",
    ),
    *(
        "id_rsa*",
        "id_dsa*",
        "id_ecdsa*",
        "id_ed25519*",
        "kaggle.json",
        "credentials*",
        "auth_token",
        "hf_token*",
    ),
    *(
        ".pgpass",
        ".my.cnf",
        ".htpasswd",
        ".boto",
        ".s3cfg",
        ".databrickscfg",
        ".vault*",
        "kubeconfig*",
        "rclone.conf",
    ),
    *(
        "service?account*.json",
        "*credentials*.json",
        "stored_tokens",
        "auth.json",
        ".dockerconfig*",
        ".config",
        ".cache",
        "client_secret*",
        "*.secret",
        "*.secrets",
        "*.token",
        "*.tokens",
        ".pip",
        "pip.conf",
    ),
)
"""Names of files and folders that may contain secrets, in lower case. They are not sent, and the user is told."""
_KEY_NAME = re.compile(r"id_[a-z0-9-]+(\.pub|\.old|\.bak)?")
_SECRET_WORD = re.compile(
    r"(?<![a-z0-9])(secrets?|passwords?|passwd|passphrase|apikeys?|token|jwt|creds)(?![a-z0-9])"
)
_SECRET_KEY = re.compile(
    r"(?<![a-z0-9])(api|private|secret|access|wandb|hf|openai|anthropic|ssh|deploy|service|account|signing)[^a-z0-9]keys?"
    r"(?![a-z0-9])"
)
"""Keys that are secret. The file answer_key.json is not."""
_SOURCES = (
    ".py",
    ".md",
    ".rst",
    ".ipynb",
    ".sh",
    ".c",
    ".cpp",
    ".h",
    ".cu",
    ".rs",
    ".js",
    ".ts",
    ".html",
    ".css",
)
"""Endings of files that are about secrets rather than contain one, such as `secrets.py`."""
_EPOCH = (1980, 1, 1, 0, 0, 0)


class PackageRefusedError(RefusedError):
    """The working tree cannot be sent. The message is one line with the reason and the fix."""


@dataclass(frozen=True, slots=True)
class Package:
    """The files that are sent with a job."""

    files: Mapping[str, Path]
    """The files by their path in the job's working directory."""
    config: str
    """The path of the run's configuration in the job's working directory."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """The reasons why files are not sent, by their names; without those in `EXCLUDED` and those that git ignores."""

    @property
    def notes(self) -> list[str]:
        """One line for each reason to leave files out."""
        reasons: dict[str, list[str]] = {}
        for name, reason in sorted(self.left_out.items()):
            reasons.setdefault(reason, []).append(name)
        return [f"left out, because {reason}: {_listed(names)}" for reason, names in reasons.items()]

    @property
    def size(self) -> int:
        """The size in bytes before compression."""
        return sum(_size(file) for file in self.files.values())

    def largest(self, count: int = 3) -> str:
        """Return the names and sizes of the largest files, as text for a message."""
        sizes = sorted(((_size(file), name) for name, file in self.files.items()), reverse=True)
        return ", ".join(f"{name} ({size / 2**20:.1f} MiB)" for size, name in sizes[:count])

    def write(self, path: Path) -> None:
        """Write the zip file. Equal contents give equal zip files, so that Ray recognizes a package that it has.

        Raises:
            PackageRefusedError: if the zip file is larger than the job server accepts, or a file cannot be read.
        """
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(self.files):
                file = self.files[name]
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (0o755 if os.access(file, os.X_OK) else 0o644) << 16
                try:
                    content = read_bytes(file, MAX_FILE_MIB)
                except (OSError, RefusedError) as error:
                    raise PackageRefusedError(
                        f"{name} cannot be sent ({error}); exclude it with --exclude PATTERN, or in .gitignore"
                    ) from error
                archive.writestr(entry, content)
        if (packed := path.stat().st_size) > MAX_PACKAGE_MIB * 2**20:
            raise PackageRefusedError(
                f"the packed working tree has {packed / 2**20:.0f} MiB, and Ray accepts {MAX_PACKAGE_MIB}; the largest "
                f"files: {self.largest()}; exclude files that the run does not need: --exclude PATTERN, or .gitignore"
            )


def package(tree: Path, config_file: Path, exclude: Sequence[str] = (), project: Path = ROOT) -> Package:
    """Select the files of the working tree, the configuration, and this project if the tree is a different one.

    In a git work tree, all files are selected that git does not ignore, including new ones. Files that cannot be sent
    or should not be, such as pipes, keys and links to files outside of the tree, are left out, with the reason.

    Args:
        exclude: Patterns for the names or paths of more files to exclude.

    Raises:
        PackageRefusedError: if a pattern excludes the configuration.
    """
    patterns = (*EXCLUDED, *exclude)
    files: dict[str, Path] = {}
    left_out: dict[str, str] = {}
    roots = [(tree, _names(tree))]
    if not (tree / "launch.py").is_file():
        roots.append((project, _project_names(project)))
    for root, names in roots:
        for name in names:
            if _is_excluded(name, patterns):
                continue
            if reason := _obstacle(root, name, patterns):
                left_out[shown_path(Path(name))] = reason
            else:
                files[name] = (root / name).resolve()
    config_file = config_file.absolute()
    if config_file.is_relative_to(tree):
        config = str(PurePosixPath(config_file.relative_to(tree)))
        if any(fnmatch.fnmatch(config, pattern) for pattern in exclude):
            raise PackageRefusedError(
                f"{config} is the run's configuration, and --exclude matches it: use a narrower pattern"
            )
    else:
        config = f"{CONFIG_FOLDER}/{config_file.name}"
    if not _is_utf8(config):
        raise PackageRefusedError(
            f"{shown_path(config_file)}: a name that is not UTF-8 cannot be sent; rename it"
        )
    left_out.pop(config, None)
    return Package({**files, config: config_file}, config, left_out)


def _project_names(project: Path) -> Iterator[str]:
    """Yield the paths of this project's files."""
    for part in PROJECT_PARTS:
        found = [project / part] if (project / part).is_file() else sorted((project / part).rglob("*"))
        yield from (str(PurePosixPath(file.relative_to(project))) for file in found if file.is_file())


def _names(tree: Path) -> Iterator[str]:
    """Yield the paths of the tree's files and links, with `/` as separator. Bytes that are not UTF-8 are surrogates."""
    command = ["git", "-C", str(tree), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout.split(b"\0")
    except (OSError, subprocess.CalledProcessError):  # git is not installed, or this is not a work tree
        for folder, folders, names in os.walk(tree):
            links = [name for name in folders if Path(folder, name).is_symlink()]
            folders[:] = [name for name in folders if not _is_excluded(name, EXCLUDED)]
            yield from (str(PurePosixPath(Path(folder, name).relative_to(tree))) for name in (*names, *links))
    else:
        # A file that git lists and that is gone was deleted.
        yield from (name for name in map(os.fsdecode, listed) if name and os.path.lexists(tree / name))


def _obstacle(root: Path, name: str, patterns: Sequence[str]) -> str | None:
    """Return the reason not to send a file; None if it is sent."""
    if not _is_utf8(name):
        return "the name is not UTF-8"
    if may_be_secret(name):
        return "it may contain a secret"
    file = root / name
    try:
        target, own_root = file.resolve(strict=True), root.resolve()
        if not target.is_relative_to(own_root):
            return "the link leads out of the working tree"
        inside = str(PurePosixPath(target.relative_to(own_root)))
        if inside != name and (_is_excluded(inside, patterns) or may_be_secret(inside)):
            return "the link leads to a file that is not sent"
        if file.is_symlink() and target.is_dir():
            return "it is a link to a folder"
        kind = kind_of(target.stat())
    except (OSError, RuntimeError):  # a link to nothing, or in a circle
        return "the link is broken" if file.is_symlink() else "it cannot be read"
    if kind == "a directory":
        return "it is a repository of its own"  # git lists only its folder
    if kind is not None:
        return f"it is {kind}"
    return None if os.access(target, os.R_OK) else "it cannot be read"


def may_be_secret(path: str) -> bool:
    """Return True if the name of a file, or of a folder around it, is one that files with secrets have."""
    *folders, name = path.lower().split("/")
    if any(fnmatch.fnmatchcase(part, pattern) for part in (*folders, name) for pattern in SECRETS):
        return True
    if name.endswith(_SOURCES):
        return False
    return bool(_KEY_NAME.fullmatch(name) or _SECRET_WORD.search(name) or _SECRET_KEY.search(name))


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _size(file: Path) -> int:
    """Return the size of a file; 0 if it has vanished, which `write` reports."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _listed(names: Sequence[str], shown: int = 5) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f", and {rest} more" if rest > 0 else "")


def _is_excluded(name: str, patterns: Sequence[str]) -> bool:
    parts = name.split("/")
    beginnings = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    return any(fnmatch.fnmatch(part, pattern) for part in (*parts, *beginnings) for pattern in patterns)
