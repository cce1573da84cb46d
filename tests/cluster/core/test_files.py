"""Files and directories appear whole or not at all, also when their process is killed; locks end with their process."""

from __future__ import annotations

import ast
import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.core.files import lock, new_directory, try_lock, write_atomically
from tests import PROJECT

PRELUDE = (
    "import os, sys\nfrom pathlib import Path\nfrom cluster.core.files import *\npath = Path(sys.argv[1])\n"
)


def run(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own, with `path` as the variable `path`."""
    command = [sys.executable, "-c", PRELUDE + code, str(path)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)


@contextmanager
def running(code: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run `code` in another process until it prints a line; kill it at the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code, str(path)],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


# --- Files


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=100) | st.text(st.characters(exclude_categories=["Cs"]), max_size=100), st.booleans()
)
def test_the_content_is_written_unchanged(tmp_path: Path, content: str | bytes, durable: bool) -> None:
    file = tmp_path / "file"
    write_atomically(file, content, durable=durable)
    assert file.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert list(tmp_path.iterdir()) == [file]


def test_a_new_file_has_the_permissions_of_an_ordinary_one(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", "text")
    (tmp_path / "ordinary").touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "ordinary")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("killed_in", ["replace", "fsync"])
def test_a_killed_writer_leaves_the_old_content(tmp_path: Path, killed_in: str) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    code = f"""
os.{killed_in} = lambda *_: os.kill(os.getpid(), 9)
write_atomically(path, "new" * 1000, durable=True)
"""
    assert run(code, file).returncode == -9
    assert file.read_text() == "old"
    write_atomically(file, "newer")
    assert file.read_text() == "newer"


def test_a_writer_that_is_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    """A real process rewrites the file until it is killed."""
    file = tmp_path / "file"
    code = """
write_atomically(path, b"0" * 3_000_000)
print("started", flush=True)
while True:
    for digit in b"123":
        write_atomically(path, bytes([digit]) * 3_000_000)
"""
    for _ in range(5):
        with running(code, file):
            pass
        content = file.read_bytes()
        assert len(content) == 3_000_000
        assert len(set(content)) == 1


@pytest.mark.parametrize("durable", [False, True])
def test_a_full_disk_leaves_the_old_content_and_no_scratch_file(tmp_path: Path, durable: bool) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_atomically(path, bytes(1_000_000), durable={durable})
except OSError as error:
    print(error.errno)
"""
    assert run(code, file).stdout == f"{errno.EFBIG}\n"
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_durable_content_is_on_the_disk_before_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str]] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        content = Path(f"/proc/self/fd/{descriptor}").read_text()
        calls.append(("fsync", content))
        real_fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        calls.append(("replace", source.read_text()))
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_atomically(tmp_path / "file", "text", durable=True)
    assert calls == [("fsync", "text"), ("replace", "text")]


# --- Directories


def test_a_directory_has_its_name_only_when_the_block_has_succeeded(tmp_path: Path) -> None:
    target = tmp_path / "parent" / "target"
    with new_directory(target) as directory:
        assert list(directory.iterdir()) == []
        (directory / "file").write_text("text")
        assert not target.exists()
    assert (target / "file").read_text() == "text"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError])
def test_a_block_that_fails_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_directory(tmp_path / "target") as directory:
        (directory / "file").touch()
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_empty_directory_is_replaced_and_a_full_one_stays(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with new_directory(target) as directory:
        (directory / "first").touch()
    with pytest.raises(FileExistsError, match="target"), new_directory(target) as directory:
        (directory / "second").touch()
    assert [file.name for file in target.iterdir()] == ["first"]
    assert list(tmp_path.iterdir()) == [target]


HALF_WAY = """
with new_directory(path) as directory:
    (directory / "half").touch()
    print("half way", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_leaves_no_target_and_the_next_call_deletes_its_scratch_directory(
    tmp_path: Path,
) -> None:
    target = tmp_path / "target"
    with running(HALF_WAY, target):
        pass
    assert not target.exists()
    assert len(list(tmp_path.iterdir())) == 1
    with new_directory(tmp_path / "another"):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "another"]


def test_the_scratch_directory_of_a_living_process_stays(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with running(HALF_WAY, target) as process:
        with new_directory(tmp_path / "another"):
            pass
        process.communicate("")
        assert process.returncode == 0
    assert [file.name for file in target.iterdir()] == ["half"]


# --- Locks


def test_a_lock_is_taken_by_one_and_free_after_its_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with open(path, "a") as first, open(path, "a") as second:
        assert try_lock(first)
        assert not try_lock(second)
        first.close()
        assert try_lock(second)


def test_shared_locks_exclude_only_the_exclusive_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with open(path, "a") as first, open(path, "a") as second, open(path, "a") as third:
        lock(first, shared=True)
        lock(second, shared=True)
        assert not try_lock(third)
        first.close()
        second.close()
        assert try_lock(third)


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    code = "file = open(path, 'a')\nprint(try_lock(file), flush=True)\nsys.stdin.read()\n"
    with open(path, "a") as file:
        with running(code, path):
            assert not try_lock(file)
        assert try_lock(file)


# --- One helper for each


def direct_uses(source: str) -> list[str]:
    """Return the uses of `fcntl`, `os.replace`, `os.rename` and `Path.replace` in a module."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [getattr(node, "module", None), *(alias.name for alias in node.names)]
            found += [name for name in modules if name == "fcntl"]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            path_replace = node.func.attr == "replace" and len(node.args) == 1 and not node.keywords
            if (owner == "os" and node.func.attr in ("replace", "rename")) or path_replace:
                found.append(f"{owner}.{node.func.attr}")
    return found


def test_direct_uses_are_detected() -> None:
    source = "import fcntl\nos.replace(a, b)\nos.rename(a, b)\npath.with_suffix('.x').replace(path)\n"
    assert len(direct_uses(source)) == 4
    assert direct_uses("text.replace('a', 'b')\ndataclasses.replace(value, a=1)\nreplace(value)\n") == []


def test_no_other_module_replaces_or_locks_files_directly() -> None:
    for package in ("cluster", "rollout", "learner", "reward"):
        for file in sorted((PROJECT / package).rglob("*.py")):
            if file != PROJECT / "cluster" / "core" / "files.py":
                assert direct_uses(file.read_text(encoding="utf-8")) == [], file
