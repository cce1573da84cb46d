"""A text stream that never fails: the output of a command may be lost, but does not end the command.

Output is lost when the reader of a pipe ends (`| head`), the disk of a log file is full, or the terminal is closed.
Characters that the stream's encoding lacks are replaced.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast


class TolerantStream(io.TextIOBase):
    """Writes to `stream` until that fails. From then on, everything that is written is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: str | None = None
        """The reason why the output is lost; None while it is not."""
        self.is_missed = False
        """Whether the loss is an error: a full disk is, and a reader that has ended is not."""

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # what is written to it would not pass through this class
            raise AttributeError(name)
        return getattr(self._stream, name)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return getattr(self._stream, "errors", None)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        with suppress(OSError, ValueError):
            return self._stream.isatty()
        return False

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        if self.lost is None:
            try:
                self._write(text)
            except (OSError, ValueError) as error:  # ValueError: the stream is closed
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        if self.lost is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))

    def _lose(self, error: Exception) -> None:
        """Remember the reason, and let what the stream still holds go nowhere: otherwise its flush at the end of the
        process would fail, and with it the process."""
        self.lost = getattr(error, "strerror", None) or str(error)
        self.is_missed = isinstance(error, OSError) and error.errno not in (errno.EPIPE, errno.EIO)
        with suppress(OSError, ValueError):
            descriptor = self._stream.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


def tolerant(stream: TextIO) -> TolerantStream:
    """Return `stream` as one that never fails."""
    return stream if isinstance(stream, TolerantStream) else TolerantStream(stream)


def protect_standard_streams() -> TolerantStream:
    """Let stdout and stderr of this process never fail, and return stdout. Those that the caller has closed lead
    nowhere."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # otherwise the next file that is opened would receive what is printed
            os.open(os.devnull, os.O_RDWR)  # it gets the smallest free descriptor
    stdout, stderr = (
        tolerant(stream or open(os.devnull, "w", encoding="utf-8")) for stream in (sys.stdout, sys.stderr)
    )
    sys.stdout, sys.stderr = cast("TextIO", stdout), cast("TextIO", stderr)
    return stdout
