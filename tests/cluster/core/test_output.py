"""Output that is lost never reaches the caller, and no character is too foreign."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from typing import TextIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.output import tolerant
from tests import PROJECT


def broken_pipe() -> TextIO:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", buffering=1)


def closed_terminal() -> TextIO:
    master, slave = os.openpty()
    stream = os.fdopen(slave, "w", buffering=1)
    os.close(master)
    return stream


def full_disk() -> TextIO:
    return open("/dev/full", "w", buffering=1)


def closed_file() -> TextIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize(
    ("lost", "why", "is_missed"),
    [
        (broken_pipe, "Broken pipe", False),
        (closed_terminal, "Input/output error", False),
        (full_disk, "No space left on device", True),
        (closed_file, "I/O operation on closed file", False),
    ],
)
def test_a_lost_stream_drops_what_is_written(lost, why: str, is_missed: bool) -> None:
    stream = lost()
    output = tolerant(stream)
    assert output.lost is None
    for _ in range(3):
        print("text", file=output, flush=True)
    assert why in str(output.lost)
    assert output.is_missed == is_missed
    if not stream.closed:
        stream.close()  # what it still holds is dropped too: this raises nothing


@given(text=st.text(), encoding=st.sampled_from(["latin-1", "ascii", "cp1252", "utf-8", "koi8-r"]))
def test_every_text_can_be_written_in_every_encoding(text: str, encoding: str) -> None:
    """Surrogates are no exception."""
    text += "\ud800"
    raw = io.BytesIO()
    output = tolerant(cast("TextIO", io.TextIOWrapper(raw, encoding=encoding, newline="")))
    output.write(text)
    output.flush()
    assert output.lost is None
    assert raw.getvalue() == text.encode(encoding, "replace")


def test_a_stream_is_wrapped_once() -> None:
    output = tolerant(io.StringIO())
    assert tolerant(cast("TextIO", output)) is output


@pytest.mark.parametrize(
    ("redirection", "code", "errors"),
    [
        ("| head -1", 0, ""),
        ("| true", 0, ""),
        (">&-", 0, ""),
        ("2>&- >&- <&-", 0, ""),
        ("> /dev/full", 1, "the output could not be written: No space left on device\n"),
    ],
)
def test_a_command_ends_quietly_with_its_usual_code(redirection: str, code: int, errors: str) -> None:
    script = f"set -o pipefail; {sys.executable} launch.py tasks {redirection}"
    process = subprocess.run(
        ["bash", "-c", script], cwd=PROJECT, capture_output=True, text=True, env=os.environ
    )
    assert (process.returncode, process.stderr) == (code, errors)


def test_a_refusal_without_stderr_keeps_its_code() -> None:
    script = f"{sys.executable} launch.py check nowhere.yaml 2> /dev/full"
    process = subprocess.run(["bash", "-c", script], cwd=PROJECT, capture_output=True)
    assert process.returncode == 2
