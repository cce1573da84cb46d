"""The files that are sent with a job, and the files that are never sent."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from cluster.commands.jobs import package as package_module
from cluster.commands.jobs.package import PackageRefusedError, package
from tests import PROJECT

SECRETS = [
    ".env",
    ".env.local",
    ".netrc",
    "deep/.ssh/id_rsa",
    "server.pem",
    "deep/credentials.json",
    "auth_token",
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Create the working tree of a user."""
    tree = tmp_path / "tree"
    for name in [
        "run.yaml",
        "my_rewards.py",
        "data/sums.jsonl",
        "runs/old/model.bin",
        ".venv/lib/x.py",
        *SECRETS,
    ]:
        file = tree / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return tree


OURS = {"run.yaml", "my_rewards.py", "data/sums.jsonl"}


def own(files: object) -> set[str]:
    """Return the names of the user's files, without those of this project."""
    assert isinstance(files, dict)
    return {name for name, file in files.items() if not file.is_relative_to(PROJECT)}


@pytest.mark.parametrize("in_git", [True, False])
def test_secrets_and_generated_files_are_not_sent(tree: Path, in_git: bool) -> None:
    """This also holds for a committed secret."""
    if in_git:
        subprocess.run(["git", "init", "-q", tree], check=True)
        subprocess.run(["git", "-C", tree, "add", "-f", "-A"], check=True)
    assert own(package(tree, tree / "run.yaml").files) == OURS


def test_ignored_files_are_not_sent_and_new_files_are(tree: Path) -> None:
    subprocess.run(["git", "init", "-q", tree], check=True)
    (tree / ".gitignore").write_text("data/\n")
    assert own(package(tree, tree / "run.yaml").files) == {"run.yaml", "my_rewards.py", ".gitignore"}


def test_a_removed_file_that_git_still_lists_is_skipped(tree: Path) -> None:
    subprocess.run(["git", "init", "-q", tree], check=True)
    subprocess.run(["git", "-C", tree, "add", "run.yaml", "my_rewards.py"], check=True)
    (tree / "my_rewards.py").unlink()
    assert "my_rewards.py" not in package(tree, tree / "run.yaml").files


@pytest.mark.parametrize("pattern", ["data", "*.jsonl", "data/*", "sums.jsonl"])
def test_more_files_can_be_excluded(tree: Path, pattern: str) -> None:
    assert own(package(tree, tree / "run.yaml", [pattern]).files) == OURS - {"data/sums.jsonl"}


def test_this_project_is_sent_with_the_tree_of_another_project(tree: Path) -> None:
    files = package(tree, tree / "run.yaml").files
    assert {
        "launch.py",
        "cluster/training/controller.py",
        "rollout/engine/worker.py",
        "learner/engine/rank.py",
        "reward/task.py",
    } <= set(files)
    assert not any("__pycache__" in name for name in files)


def test_this_project_is_packed_once() -> None:
    packed = package(PROJECT, PROJECT / "configs/demo.yaml")
    assert packed.config == "configs/demo.yaml"
    assert packed.files["launch.py"] == PROJECT / "launch.py"
    assert packed.size < 5 * 2**20, packed.largest()


def test_a_configuration_from_outside_the_tree_is_sent_too(tree: Path, tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.yaml"
    file.write_text("steps: 1")
    packed = package(tree, file)
    assert packed.files[packed.config] == file


def test_equal_trees_make_equal_packages(tree: Path, tmp_path: Path) -> None:
    """Ray recognizes a package that it already has."""
    packages = [tmp_path / "1.zip", tmp_path / "2.zip"]
    for file in packages:
        (tree / "run.yaml").touch()
        package(tree, tree / "run.yaml").write(file)
    assert packages[0].read_bytes() == packages[1].read_bytes()
    with zipfile.ZipFile(packages[0]) as archive:
        assert archive.read("data/sums.jsonl") == b"data/sums.jsonl"


def test_a_package_that_is_too_large_names_its_largest_files(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_module, "MAX_PACKAGE_MIB", 0)
    (tree / "data/huge.bin").write_bytes(b"0" * 2**21)
    with pytest.raises(PackageRefusedError, match=r"data/huge\.bin \(2\.0 MiB\).*--exclude"):
        package(tree, tree / "run.yaml").write(tmp_path / "package.zip")


def test_the_configuration_cannot_be_excluded(tree: Path) -> None:
    with pytest.raises(PackageRefusedError, match=r"run\.yaml is the run's configuration"):
        package(tree, tree / "run.yaml", ["*.yaml"])
