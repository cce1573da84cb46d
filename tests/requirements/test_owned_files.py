"""No file belongs to two packages of an environment, and the check that finds such files."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from requirements.owned_files import Package, missing_files, read_packages, report, shared_files
from tests import PROJECT


def test_no_file_of_this_environment_belongs_to_two_packages() -> None:
    """In CI this is the environment of cpu.txt and test.txt. `make gpu-config` checks that of gpu.txt and test.txt."""
    directory = Path(sysconfig.get_path("purelib"))
    packages = read_packages(directory)
    assert {"torch", "ray", "pytest"} <= {package.name for package in packages}
    faults, _ = report(packages, directory)
    assert not faults


paths = st.sampled_from(["cuda/__init__.py", "cuda/bindings/runtime.so", "../../../bin/tool", "one.py"])
environments = st.lists(st.dictionaries(paths, st.sampled_from(["", "a", "b"])), max_size=4)


@given(environments)
def test_a_file_is_shared_if_two_packages_have_it_and_a_fault_if_they_differ(
    contents: list[dict[str, str]],
) -> None:
    packages = [Package(f"package-{index}", "1", files) for index, files in enumerate(contents)]
    found = {file.path: file for file in shared_files(packages)}
    for path in {path for files in contents for path in files}:
        hashes = [files[path] for files in contents if path in files]
        assert (path in found) == (len(hashes) > 1)
        if len(hashes) > 1:
            assert len(found[path].owners) == len(hashes)
            # Without a hash the contents are unknown.
            assert found[path].harmless == (len(set(hashes)) == 1 and "" not in hashes)


def test_only_the_listed_packages_may_own_a_harmless_file() -> None:
    flashinfer = Package("flashinfer-python", "1", {"build_backend.py": "a"})
    dlpack = Package("torch-c-dlpack-ext", "1", {"build_backend.py": "b"})
    other = Package("other", "1", {"build_backend.py": "c"})
    assert [file.harmless for file in shared_files([flashinfer, dlpack])] == [True]
    assert [file.harmless for file in shared_files([flashinfer, dlpack, other])] == [False]


def write_wheel(directory: Path, name: str, files: Mapping[str, str]) -> Path:
    """Write a wheel that an installer accepts."""
    metadata = f"{name.replace('-', '_')}-1.0.dist-info"
    contents = {
        **files,
        f"{metadata}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{metadata}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [
        f"{path},sha256={_digest(content)},{len(content.encode())}" for path, content in contents.items()
    ]
    contents[f"{metadata}/RECORD"] = "\n".join([*record, f"{metadata}/RECORD,,", ""])
    wheel = directory / f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in contents.items():
            archive.writestr(path, content)
    return wheel


def _digest(content: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()


def install(wheels: list[Path], directory: Path) -> None:
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    installer = (
        [uv, "pip", "install", "--offline"] if uv else [sys.executable, "-m", "pip", "install", "--no-index"]
    )
    command = [*installer, "-q", "--no-deps", "--target", str(directory), *map(str, wheels)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def check(directory: Path) -> subprocess.CompletedProcess[str]:
    """Run the check as `requirements/install.sh` does, with an interpreter that sees none of our packages."""
    command = [sys.executable, "-S", "-m", "requirements.owned_files", str(directory)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)


def test_an_installation_with_a_file_owned_twice_is_refused(tmp_path: Path) -> None:
    """The case of cuda-python 12 beside cuda-bindings 13: both contain the bindings, and neither installer objects."""
    wheels = [
        write_wheel(tmp_path, "cuda-python", {"cuda/bindings/runtime.py": "VERSION = 12\n", "cuda/a.py": ""}),
        write_wheel(
            tmp_path, "cuda-bindings", {"cuda/bindings/runtime.py": "VERSION = 13\n", "cuda/b.py": ""}
        ),
    ]
    install(wheels, tmp_path / "site")
    result = check(tmp_path / "site")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "cuda-bindings 1.0" in line
    assert "cuda-python 1.0" in line
    assert "cuda/bindings/runtime.py" in line
    assert "make lock" in line


def test_a_namespace_with_equal_files_is_accepted(tmp_path: Path) -> None:
    wheels = [
        write_wheel(tmp_path, "space-one", {"space/__init__.py": "# shared\n", "space/one.py": "1\n"}),
        write_wheel(tmp_path, "space-two", {"space/__init__.py": "# shared\n", "space/two.py": "2\n"}),
    ]
    install(wheels, tmp_path / "site")
    result = check(tmp_path / "site")
    assert result.returncode == 0, result.stderr
    assert "1 files with the same content" in result.stdout


def test_a_file_that_is_gone_is_reported(tmp_path: Path) -> None:
    """This remains when a package that overwrote another one is removed."""
    install([write_wheel(tmp_path, "alone", {"alone.py": "1\n", "rest.py": "2\n"})], tmp_path / "site")
    (tmp_path / "site/alone.py").unlink()
    result = check(tmp_path / "site")
    assert result.returncode == 1
    assert "alone 1.0 lacks alone.py" in result.stderr
    packages = read_packages(tmp_path / "site")
    assert [path for _, path in missing_files(packages, tmp_path / "site")] == ["alone.py"]


def test_a_package_without_a_record_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "old-1.0.dist-info").mkdir()
    (tmp_path / "old-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: old\nVersion: 1.0\n")
    with pytest.raises(ValueError, match=r"old 1\.0 has no RECORD"):
        read_packages(tmp_path)
    result = check(tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines() == ["old 1.0 has no RECORD: install it with pip or uv, from a wheel"]
