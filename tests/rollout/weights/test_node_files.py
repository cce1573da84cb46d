"""Weight files on a node: workers share them, they exist while in use, and they are removed even after a crash."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollout.weights import node_files as weight_files
from rollout.weights.node_files import NodeWeightFiles
from tests import PROJECT


def parts(version: int, size: int = 1000) -> list[np.ndarray]:
    return [np.full(size, version % 251, dtype=np.uint8), np.full(3, version % 250, dtype=np.uint8)]


def whole(version: int) -> bytes:
    return b"".join(part.tobytes() for part in parts(version))


def versions(root: Path, run: str = "run") -> list[int]:
    return sorted(int(file.stem) for file in (root / f"hpo-weights-{run}").glob("*.safetensors"))


def runs(root: Path) -> list[str]:
    return sorted(path.name.removeprefix("hpo-weights-") for path in root.iterdir())


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start `code` in another process."""
    prelude = "import sys, time\nimport numpy as np\nfrom rollout.weights.node_files import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", prelude + code, *map(str, arguments)],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def a_process_that_holds(root: Path, run: str, version: int) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds a file. It is killed with SIGKILL at the end of the block, so it cannot clean up."""
    code = """
root, run, version = sys.argv[1:]
files = NodeWeightFiles(run, Path(root))
with files.held(int(version), [np.zeros(10, dtype=np.uint8)]):
    print("held", flush=True)
    sys.stdin.read()
"""
    process = start(code, root, run, version)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n", process.stderr and process.stderr.read()
        try:
            yield process
        finally:
            process.kill()


def at_once(code: str, root: Path) -> list[str]:
    """Run `code` in four processes at the same time. Return their error output.

    The code prints "ready" and then waits for a line.
    """
    workers = [start(code, root) for _ in range(4)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    return [worker.communicate()[1] for worker in workers]


def test_the_file_holds_the_bytes_and_outlives_the_block(tmp_path: Path) -> None:
    files = NodeWeightFiles("run", tmp_path)
    with files.held(3, parts(3)) as path:
        assert path.read_bytes() == whole(3)
    assert versions(tmp_path) == [3], "another worker may still need it"


def test_workers_of_a_run_share_one_file(tmp_path: Path) -> None:
    first, second = NodeWeightFiles("run", tmp_path), NodeWeightFiles("run", tmp_path)
    with first.held(1, parts(1)) as path:
        written = path.stat()
        with second.held(1, parts(1)) as other:
            assert other == path
            assert (other.stat().st_ino, other.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def test_an_unused_version_is_removed_after_a_newer_one_was_used(tmp_path: Path) -> None:
    slow, fast = NodeWeightFiles("run", tmp_path), NodeWeightFiles("run", tmp_path)
    with ExitStack() as stack:
        path = stack.enter_context(slow.held(1, parts(1)))
        with fast.held(2, parts(2)):
            assert versions(tmp_path) == [1, 2]
        assert versions(tmp_path) == [1, 2], "the slow worker still reads version 1"
        assert path.read_bytes() == whole(1)
    with slow.held(2, parts(2)):
        pass
    assert versions(tmp_path) == [2]


def test_a_lagging_worker_removes_no_newer_version(tmp_path: Path) -> None:
    slow, fast = NodeWeightFiles("run", tmp_path), NodeWeightFiles("run", tmp_path)
    with fast.held(2, parts(2)):
        pass
    with slow.held(1, parts(1)) as path:
        assert path.read_bytes() == whole(1)
    assert 2 in versions(tmp_path)


def test_the_last_worker_removes_the_directory(tmp_path: Path) -> None:
    first, second = NodeWeightFiles("run", tmp_path), NodeWeightFiles("run", tmp_path)
    with first.held(1, parts(1)):
        pass
    first.close()
    assert runs(tmp_path) == ["run"]
    assert versions(tmp_path) == [1]
    second.close()
    assert runs(tmp_path) == []


def test_the_files_of_a_killed_run_are_removed_by_the_next_run(tmp_path: Path) -> None:
    with a_process_that_holds(tmp_path, "crashed", version=1):
        NodeWeightFiles("other", tmp_path).close()
        assert versions(tmp_path, "crashed") == [1], "a live run must be kept"
    next_run = NodeWeightFiles("next", tmp_path)
    assert runs(tmp_path) == ["next"]
    next_run.close()


def test_a_killed_worker_holds_nothing(tmp_path: Path) -> None:
    files = NodeWeightFiles("run", tmp_path)
    with a_process_that_holds(tmp_path, "run", version=1):
        with files.held(2, parts(2)):
            pass
        assert versions(tmp_path) == [1, 2]
    with files.held(3, parts(3)):
        pass
    assert versions(tmp_path) == [3]
    files.close()
    assert runs(tmp_path) == []


def test_a_partial_file_of_a_killed_writer_is_never_used(tmp_path: Path) -> None:
    """The file appears under the name of the version only when it is complete."""
    files = NodeWeightFiles("run", tmp_path)
    code = """
import os, rollout.weights.node_files
rollout.weights.node_files.os.link = lambda *_: os.kill(os.getpid(), 9)
with NodeWeightFiles("run", Path(sys.argv[1])).held(1, [np.zeros(10, dtype=np.uint8)]):
    pass
"""
    with start(code, tmp_path) as process:
        process.communicate()
    assert process.returncode == -9
    assert versions(tmp_path) == []
    with files.held(1, parts(1)) as path:
        assert path.read_bytes() == whole(1)


def test_a_late_writer_does_not_replace_a_held_file(tmp_path: Path) -> None:
    """No worker would hold a file that replaces it, so that file would be deleted while it is used."""
    files = NodeWeightFiles("run", tmp_path)
    with files.held(1, parts(1)) as path:
        before = path.stat().st_ino
        files._write_whole(path, parts(1))
        assert path.stat().st_ino == before
        with NodeWeightFiles("run", tmp_path).held(2, parts(2)):
            pass
        assert path.exists()
    assert len(list(path.parent.iterdir())) == len({"presence", "writing", "1", "2"}), (
        "no scratch file is left"
    )


def test_bytes_that_do_not_fit_raise_an_error_and_leave_no_file(tmp_path: Path) -> None:
    """Memory is scarce then, so a partial file must not occupy the rest of it."""
    code = """
import os, resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
files = NodeWeightFiles("run", Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with files.held(1, [np.zeros(1_000_000, dtype=np.uint8)]):
        print("held")
except OSError:
    print("refused", sorted(os.listdir(Path(sys.argv[1]) / "hpo-weights-run")))
"""
    with start(code, tmp_path) as process:
        output, errors = process.communicate()
    assert output == "refused ['presence', 'writing']\n", errors


def test_concurrent_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Four workers use the same versions at the same time. Each reads complete files, and the last one cleans up."""
    code = """
root = Path(sys.argv[1])
files = NodeWeightFiles("run", root)
print("ready", flush=True)
sys.stdin.readline()
for version in range(1, 41):
    expected = np.full(300_000, version, dtype=np.uint8)
    with files.held(version, [expected]) as path:
        assert path.read_bytes() == expected.tobytes(), version
files.close()
"""
    assert at_once(code, tmp_path) == [""] * 4
    assert runs(tmp_path) == []


def test_one_of_several_concurrent_workers_writes_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If each worker copied a large model, all of them would be slowed down."""
    written: list[Path] = []
    barrier = threading.Barrier(4)

    real = NodeWeightFiles._write_whole

    def write(files: NodeWeightFiles, path: Path, parts: Sequence[np.ndarray]) -> None:
        written.append(path)
        real(files, path, parts)

    def read(_: int) -> bytes:
        files = NodeWeightFiles("run", tmp_path)
        barrier.wait()
        with files.held(1, parts(1, size=10_000_000)) as path:
            return path.read_bytes()[-3:]

    monkeypatch.setattr(NodeWeightFiles, "_write_whole", write)
    with ThreadPoolExecutor(4) as workers:
        found = list(workers.map(read, range(4)))
    assert found == [whole(1)[-3:]] * 4
    assert len(written) == 1


def test_a_stopped_writer_is_not_waited_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = NodeWeightFiles("run", tmp_path)
    monkeypatch.setattr(weight_files, "PATIENCE_S", 0.01)
    with open(tmp_path / "hpo-weights-run" / "writing", "a") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        with files.held(1, parts(1)) as path:
            assert path.read_bytes() == whole(1)


def test_workers_may_open_and_close_concurrently(tmp_path: Path) -> None:
    """The last worker removes the directory while another worker opens it."""
    code = """
print("ready", flush=True)
sys.stdin.readline()
for _ in range(200):
    files = NodeWeightFiles("run", Path(sys.argv[1]))
    with files.held(1, [np.ones(1000, dtype=np.uint8)]) as path:
        assert path.read_bytes() == bytes([1]) * 1000
    files.close()
"""
    assert at_once(code, tmp_path) == [""] * 4
    assert runs(tmp_path) == []


def test_a_directory_that_disappears_during_opening_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mkdir` finds an existing directory, which is then removed."""
    real = os.mkdir
    vanished: list[Path] = []

    def mkdir(path: Path, *arguments: int) -> None:
        if not vanished:
            vanished.append(path)
            raise FileExistsError(path)
        real(path, *arguments)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with NodeWeightFiles("run", tmp_path).held(1, parts(1)) as path:
        assert path.read_bytes() == whole(1)
    assert vanished


def test_a_worker_that_opens_while_the_last_one_cleans_up_keeps_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker opens when a part of the directory is deleted. Its files must not be deleted with the rest."""
    real: Any = shutil.rmtree
    with ExitStack() as stack:
        entered: list[Path] = []

        def rmtree(path: Path, **options: bool) -> None:
            if not entered:
                (Path(path) / "presence").unlink()
                newcomer = NodeWeightFiles("run", tmp_path)
                entered.append(stack.enter_context(newcomer.held(1, parts(1))))
            real(path, **options)

        last = NodeWeightFiles("run", tmp_path)
        monkeypatch.setattr(shutil, "rmtree", rmtree)
        last.close()
        (path,) = entered
        assert path.exists()
        assert path.read_bytes() == whole(1)


@pytest.mark.parametrize("presence_left", [True, False])
def test_a_run_may_start_after_a_crash_of_the_same_run(tmp_path: Path, presence_left: bool) -> None:
    with a_process_that_holds(tmp_path, "run", version=1):
        pass
    if not presence_left:
        (tmp_path / "hpo-weights-run" / "presence").unlink()
    files = NodeWeightFiles("run", tmp_path)
    with files.held(2, parts(2)):
        pass
    assert versions(tmp_path) == [2]
    files.close()
    assert runs(tmp_path) == []


def inode(path: Path) -> int:
    return path.stat().st_ino


def test_a_file_without_a_lock_is_written_again_and_never_seen_with_two_contents(tmp_path: Path) -> None:
    """Its pages exist already, so writing them is a copy."""
    first, second = NodeWeightFiles("run", tmp_path), NodeWeightFiles("run", tmp_path)
    with first.held(1, parts(1)) as path:
        before = inode(path)
    for version, files, size in ((2, first, 1000), (3, second, 1000), (4, first, 5000), (5, first, 10)):
        with files.held(version, parts(version, size)) as path:
            assert inode(path) == before
            assert path.read_bytes() == b"".join(part.tobytes() for part in parts(version, size))
        assert versions(tmp_path) == [version]


def test_a_file_that_a_worker_holds_is_not_written_again(tmp_path: Path) -> None:
    slow, fast = NodeWeightFiles("run", tmp_path), NodeWeightFiles("run", tmp_path)
    with slow.held(1, parts(1)) as path, fast.held(2, parts(2)) as other:
        assert inode(path) != inode(other)
        assert path.read_bytes() == whole(1)
        assert other.read_bytes() == whole(2)


def test_a_partial_file_of_a_killed_writer_is_removed(tmp_path: Path) -> None:
    code = """
import os, rollout.weights.node_files
files = NodeWeightFiles("run", Path(sys.argv[1]))
with files.held(1, [np.zeros(10, dtype=np.uint8)]):
    pass
rollout.weights.node_files.os.link = lambda *_: os.kill(os.getpid(), 9)
with files.held(2, [np.zeros(10, dtype=np.uint8)]):
    pass
"""
    files = NodeWeightFiles("run", tmp_path)
    with start(code, tmp_path) as process:
        process.communicate()
    assert process.returncode == -9
    folder = tmp_path / "hpo-weights-run"
    assert len(list(folder.glob("*.partial"))) == 1
    with files.held(3, parts(3)) as path:
        assert path.read_bytes() == whole(3)
    assert not list(folder.glob("*.partial"))


def test_the_memory_of_a_removed_file_is_released(tmp_path: Path) -> None:
    """A mapping would keep it, in a worker that no longer writes."""
    slow, fast = NodeWeightFiles("run", tmp_path), NodeWeightFiles("run", tmp_path)
    with slow.held(1, parts(1)), fast.held(2, parts(2)):
        pass
    with fast.held(3, parts(3)), slow.held(3, parts(3)):
        pass
    lines = [
        line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line
    ]
    assert {int(fields[4]) for fields in lines} == {inode(tmp_path / "hpo-weights-run" / "3.safetensors")}
