"""Read files that may be anything: missing, a directory, a named pipe, a device, binary, truncated.

Everything that a command reads of a run directory, or by a name from the user, is read here; what it writes goes
through `cluster/core/files.py`. The functions never wait for another process, never read without a limit, and refuse
what they cannot use in one line. tests/test_architecture.py lists the modules that may open a file themselves.
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import yaml

from cluster.core.errors import RefusedError

SMALL_FILE_MIB = 64
"""The limit of files that people or commands write as a whole, such as a configuration."""
RECORD_MIB = 4096
"""The limit of files that grow with a run, such as its metrics."""
MAX_NESTING = 100
FIX = "restore it from a copy, or name another one"
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a symbolic link",
}


def open_regular(path: Path, *, flags: int = os.O_RDONLY) -> int:
    """Open the regular file at `path`, without waiting, and return its descriptor.

    Raises:
        FileNotFoundError: if there is no such file.
        RefusedError: if it is not a regular file, or cannot be opened.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe waits for a writer.
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, mode=0o666)
    except FileNotFoundError:
        raise
    except OSError as error:
        cannot = "cannot be written" if flags & os.O_ACCMODE else "cannot be read"
        raise RefusedError(
            f"{shown_path(path)}: {_not_a_file(path) or f'{cannot} ({error.strerror})'}; {FIX}"
        ) from error
    except ValueError as error:  # a null character in the path
        raise RefusedError(f"{shown_path(path)}: this is not a path ({error}); {FIX}") from error
    kind = kind_of(os.fstat(descriptor))
    if kind is not None:
        os.close(descriptor)
        raise RefusedError(f"{shown_path(path)}: this is {kind}, and not a file; {FIX}")
    return descriptor


def open_own(path: Path, *, flags: int = os.O_RDONLY) -> IO[bytes] | None:
    """Open a file that a process of this user has left behind, to find out whether it is in use. Return None for
    anything else: what other users own, what is not a regular file, links, and what cannot be opened.

    The file's directory must be this user's as well: otherwise its owner could exchange what is in it.
    """
    with suppress(OSError, ValueError):
        directory = path.parent.lstat()
        if not stat.S_ISDIR(directory.st_mode) or directory.st_uid != os.geteuid():
            return None
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
            return os.fdopen(descriptor, "r+b" if flags & os.O_RDWR else "rb")
        os.close(descriptor)
    return None


def read_bytes(path: Path, limit_mib: int = SMALL_FILE_MIB) -> bytes:
    """Return the content of a regular file.

    Raises:
        FileNotFoundError: if there is no such file.
        RefusedError: if it cannot be read, or is larger than the limit.
    """
    descriptor = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        if (size := os.fstat(descriptor).st_size) > limit_mib * 2**20:
            raise RefusedError(
                f"{shown_path(path)}: the file has {size / 2**20:,.0f} MiB, more than {limit_mib}; {FIX}"
            )
        try:
            return file.read()
        except OSError as error:
            raise RefusedError(f"{shown_path(path)}: cannot be read ({error.strerror}); {FIX}") from error


def read_text(path: Path, limit_mib: int = SMALL_FILE_MIB) -> str:
    """Return the content of a regular UTF-8 file.

    Raises:
        FileNotFoundError: if there is no such file.
        RefusedError: if it cannot be read, or is not UTF-8.
    """
    try:
        return read_bytes(path, limit_mib).decode("utf-8")
    except UnicodeDecodeError as error:
        raise RefusedError(f"{shown_path(path)}: this is not a text file ({error}); {FIX}") from error


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        FileNotFoundError, RefusedError: as in `read_text`, and if it is not a JSON object.
    """
    return object_of(read_text(path), shown_path(path))


def object_of(text: str, where: str) -> dict[str, Any]:
    """Return the object that a JSON text describes.

    Args:
        where: The file, or the line of it, for the message.

    Raises:
        RefusedError: if the text is not a JSON object.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError, MemoryError) as error:  # numbers of many digits, deep nesting
        raise RefusedError(f"{where} is not JSON ({_reason(error)}); {FIX}") from error
    if not isinstance(found, dict):
        raise RefusedError(f"{where}: expected a JSON object, found {type(found).__name__}; {FIX}")
    return found


def read_yaml_text(path: Path) -> str:
    """Return the text of a YAML file that is nested no deeper than `MAX_NESTING`. libyaml, with which OmegaConf reads,
    ends the process at a nesting that exceeds its stack.

    Raises:
        FileNotFoundError, RefusedError: as in `read_text`, and if it is nested deeper.
    """
    text = read_text(path)
    depth = 0
    with suppress(yaml.YAMLError, ValueError):  # the caller, who parses the text, reports them
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > MAX_NESTING:
                break
    if depth > MAX_NESTING:
        raise RefusedError(
            f"{shown_path(path)}: the settings are nested more than {MAX_NESTING} levels deep; {FIX}"
        )
    return text


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        FileNotFoundError, RefusedError: as in `read_text`, and if it is not a YAML mapping with names as keys.
    """
    text = read_yaml_text(path)
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError, MemoryError) as error:  # a date that does not exist
        raise RefusedError(f"{shown_path(path)} is not YAML ({_reason(error)}); {FIX}") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        content = "nothing" if found is None else type(found).__name__
        raise RefusedError(f"{shown_path(path)}: expected a mapping of settings, found {content}; {FIX}")
    return found


def refuse_special_files(directory: Path, *, below: bool = False) -> None:
    """Refuse a directory that a library is going to read, if it has a pipe, a socket or a device in it: the library
    would wait indefinitely, or read without end. Hidden entries, and links that lead nowhere, are left out.

    Args:
        below: Whether the directories in it are looked at as well.

    Raises:
        RefusedError: if it has one. The message names it.
    """
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if below and not name.startswith(".")]
        for name in sorted(names):
            file = Path(folder, name)
            if name.startswith(".") or not (file.is_fifo() or file.is_socket() or _is_device(file)):
                continue
            raise RefusedError(
                f"{shown_path(file)}: this is {kind_of(file.stat())}, and not a file; move it away"
            )


def _is_device(file: Path) -> bool:
    return file.is_char_device() or file.is_block_device()


def kind_of(status: os.stat_result) -> str | None:
    """Return what a file is, such as "a named pipe"; None if it is a regular file."""
    kind = stat.S_IFMT(status.st_mode)
    return None if kind == stat.S_IFREG else _KINDS.get(kind, "a special file")


def shown_path(path: Path) -> str:
    r"""Return a path as text, with bytes that are not UTF-8 written as `\xe9`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _not_a_file(path: Path) -> str | None:
    """Return what is at `path`, if that is the reason why it could not be opened: sockets cannot be opened at all."""
    with suppress(OSError, ValueError):
        kind = kind_of(path.stat())
        return f"this is {kind}, and not a file" if kind else None
    return None


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
