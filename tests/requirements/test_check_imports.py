"""The import check after an installation, and the stub driver that replaces a missing one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from requirements.check_imports import failures, importing
from requirements.simulated_gpu import LIBRARY, STUB_VARIABLE, build_stub, has_driver, stub_environment
from tests import PROJECT


def test_every_failure_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that was overwritten can raise anything when it is imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "sound_one.py").write_text("")
    (tmp_path / "broken_one.py").write_text("raise AttributeError('cudaLibrary_t\\nand a second line')\n")
    (tmp_path / "broken_two.py").write_text("import not_there\n")
    assert failures(importing("broken_one", "sound_one", "broken_two")) == [
        "broken_one: AttributeError: cudaLibrary_t",
        "broken_two: ModuleNotFoundError: No module named 'not_there'",
    ]


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_stub_driver_loads_and_has_no_device(tmp_path: Path) -> None:
    build_stub(tmp_path)
    code = f"import ctypes; print(ctypes.CDLL({LIBRARY!r}).cuInit(0))"
    result = run(code, **stub_environment(tmp_path))
    assert result.stdout.split() == ["100"], result.stderr  # CUDA_ERROR_NO_DEVICE


@pytest.mark.skipif(has_driver(), reason="this machine has a driver, which the stub does not replace")
def test_a_process_without_a_driver_runs_again_with_the_stub() -> None:
    code = f"""
from requirements.simulated_gpu import ensure_driver, has_driver
import os, sys
ensure_driver()
print(has_driver(), {STUB_VARIABLE!r} in os.environ)
sys.exit(7)
"""
    result = run(code)
    assert result.stdout.split() == ["True", "True"], result.stderr
    assert result.returncode == 7, "the exit status is that of the second process"


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="no C compiler"):
        build_stub(tmp_path)
