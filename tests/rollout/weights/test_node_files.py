"""Weight files on a node: shared by its workers, held while in use, and gone afterwards, crash or no crash."""

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
from rollout.weights.node_files import NodeWeightFiles, _write_whole
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
    """Another process of this node."""
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
    """It ends at the latest with the block, by SIGKILL: it cannot tidy up."""
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
    """What four processes complain of that run `code` at once. It says "ready", then waits for a line."""
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
    assert versions(tmp_path) == [3], "another worker may not have come for it yet"


def test_workers_of_a_run_share_one_file(tmp_path: Path) -> None:
    first, second = NodeWeightFiles("run", tmp_path), NodeWeightFiles("run", tmp_path)
    with first.held(1, parts(1)) as path:
        written = path.stat()
        with second.held(1, parts(1)) as other:
            assert other == path
            assert (other.stat().st_ino, other.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def test_an_older_version_goes_when_a_newer_one_was_used_and_nobody_holds_it(tmp_path: Path) -> None:
    slow, fast = NodeWeightFiles("run", tmp_path), NodeWeightFiles("run", tmp_path)
    with ExitStack() as stack:
        path = stack.enter_context(slow.held(1, parts(1)))
        with fast.held(2, parts(2)):
            assert versions(tmp_path) == [1, 2]
        assert versions(tmp_path) == [1, 2], "the slow one still reads version 1"
        assert path.read_bytes() == whole(1)
    with slow.held(2, parts(2)):
        pass
    assert versions(tmp_path) == [2]


def test_a_worker_that_lags_behind_removes_no_newer_version(tmp_path: Path) -> None:
    slow, fast = NodeWeightFiles("run", tmp_path), NodeWeightFiles("run", tmp_path)
    with fast.held(2, parts(2)):
        pass
    with slow.held(1, parts(1)) as path:
        assert path.read_bytes() == whole(1)
    assert 2 in versions(tmp_path)


def test_the_last_to_close_takes_everything_along(tmp_path: Path) -> None:
    first, second = NodeWeightFiles("run", tmp_path), NodeWeightFiles("run", tmp_path)
    with first.held(1, parts(1)):
        pass
    first.close()
    assert runs(tmp_path) == ["run"]
    assert versions(tmp_path) == [1]
    second.close()
    assert runs(tmp_path) == []


def test_a_killed_run_is_swept_by_the_next_one(tmp_path: Path) -> None:
    with a_process_that_holds(tmp_path, "crashed", version=1):
        NodeWeightFiles("other", tmp_path).close()
        assert versions(tmp_path, "crashed") == [1], "it is alive"
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


def test_a_file_cut_off_by_a_kill_is_never_taken_for_whole(tmp_path: Path) -> None:
    """Bytes appear under the version's name only when all are there."""
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


def test_a_late_writer_leaves_a_held_file_alone(tmp_path: Path) -> None:
    """What took the place of a held file would be held by nobody, and be deleted under who uses it."""
    with NodeWeightFiles("run", tmp_path).held(1, parts(1)) as path:
        before = path.stat().st_ino
        _write_whole(path, parts(1))
        assert path.stat().st_ino == before
        with NodeWeightFiles("run", tmp_path).held(2, parts(2)):
            pass
        assert path.exists()
    assert len(list(path.parent.iterdir())) == len({"presence", "writing", "1", "2"}), (
        "no scratch file is left"
    )


def test_bytes_that_do_not_fit_are_an_error_and_leave_nothing(tmp_path: Path) -> None:
    """Memory is short then: half a file must not take what is left of it."""
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


def test_first_writers_at_once_do_no_harm(tmp_path: Path) -> None:
    """Four workers race through the same versions; each finds whole files, and the last one cleans up."""
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


def test_of_workers_that_come_together_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copying a large model once for each of them would cost each of them the time of all."""
    written: list[Path] = []
    together = threading.Barrier(4)

    def write(path: Path, parts: Sequence[np.ndarray]) -> None:
        written.append(path)
        _write_whole(path, parts)

    def come(_: int) -> bytes:
        files = NodeWeightFiles("run", tmp_path)
        together.wait()
        with files.held(1, parts(1, size=10_000_000)) as path:
            return path.read_bytes()[-3:]

    monkeypatch.setattr(weight_files, "_write_whole", write)
    with ThreadPoolExecutor(4) as workers:
        found = list(workers.map(come, range(4)))
    assert found == [whole(1)[-3:]] * 4
    assert len(written) == 1


def test_a_writer_that_was_stopped_in_the_middle_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = NodeWeightFiles("run", tmp_path)
    monkeypatch.setattr(weight_files, "PATIENCE_S", 0.01)
    with open(tmp_path / "hpo-weights-run" / "writing", "a") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        with files.held(1, parts(1)) as path:
            assert path.read_bytes() == whole(1)


def test_workers_that_come_and_go_at_once_do_no_harm(tmp_path: Path) -> None:
    """The last to leave takes the folder along just as another enters it."""
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


def test_a_folder_that_vanishes_while_one_enters_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mkdir` finds it there, and a moment later it is gone."""
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


def test_one_that_enters_while_the_last_tidies_up_keeps_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes when half of the folder is deleted; what it writes must not go with the other half."""
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
def test_a_run_starts_over_what_a_crash_left_under_its_name(tmp_path: Path, presence_left: bool) -> None:
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
