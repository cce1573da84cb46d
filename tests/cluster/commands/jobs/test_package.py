"""The files that are sent with a job, and the files that are never sent."""

from __future__ import annotations

import os
import socket
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


PLANTED = [
    *(
        ".git-credentials",
        ".netrc",
        "_netrc",
        ".pypirc",
        ".npmrc",
        "hf_token",
        "kaggle.json",
        "token",
        "token.txt",
    ),
    *(
        "secrets.yaml",
        "wandb_key.txt",
        "my-api-key.json",
        "id_rsa",
        "id_ed25519.pub",
        "id_work",
        "server.PEM",
        "x.key",
    ),
    *(
        "client_secret_1.json",
        "service-account-x.json",
        ".aws/config",
        ".kube/config",
        "store.p12",
        "prod.env",
        "db_password",
    ),
    *(
        "application_default_credentials.json",
        ".cache/huggingface/stored_tokens",
        ".config/gh/hosts.yml",
        "auth.json",
        ".dockerconfigjson",
    ),
]
SENT = [
    "tokenizer.json",
    "special_tokens_map.json",
    "secrets.py",
    "answer_key.json",
    "keys.py",
    "monkey.txt",
    "tokens.jsonl",
]


@pytest.mark.parametrize("in_git", [True, False])
def test_names_of_secrets_are_left_out_and_reported(tree: Path, in_git: bool) -> None:
    for name in (*PLANTED, *SENT):
        (tree / "deep" / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / "deep" / name).write_text("x")
    if in_git:
        subprocess.run(["git", "init", "-q", tree], check=True)
        subprocess.run(["git", "-C", tree, "add", "-f", "-A"], check=True)
    found = package(tree, tree / "run.yaml")
    sent = {name.removeprefix("deep/") for name in own(found.files) if name.startswith("deep/")}
    assert sent == set(SENT)
    assert {f"deep/{name}" for name in PLANTED} <= found.left_out.keys()
    assert any("it may contain a secret" in note for note in found.notes)


@pytest.mark.parametrize("in_git", [True, False])
def test_no_link_leads_out_of_the_tree(tree: Path, tmp_path: Path, in_git: bool) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "notes.txt").write_text("PLANTED")
    (tree / "link.txt").symlink_to(outside / "notes.txt")
    (tree / "folder").symlink_to(outside)
    (tree / "chain.txt").symlink_to(tree / "link.txt")
    (tree / "harmless.txt").symlink_to(tree / ".netrc")
    (tree / "inside.py").symlink_to(tree / "my_rewards.py")
    (tree / "nothing").symlink_to("/nowhere")
    (tree / "circle").symlink_to(tree / "circle")
    if in_git:
        subprocess.run(["git", "init", "-q", tree], check=True)
    found = package(tree, tree / "run.yaml")
    assert own(found.files) == OURS | {"inside.py"}
    assert {"link.txt", "folder", "chain.txt", "harmless.txt", "nothing", "circle"} <= found.left_out.keys()
    found.write(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert not any(b"PLANTED" in archive.read(name) for name in archive.namelist())


@pytest.mark.parametrize("in_git", [True, False])
def test_what_is_no_file_is_left_out(tree: Path, tmp_path: Path, in_git: bool) -> None:
    os.mkfifo(tree / "pipe")
    here = os.getcwd()
    os.chdir(tree)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("s.sock")
    os.chdir(here)
    Path(os.fsdecode(os.fsencode(tree) + b"/caf\xe9.txt")).write_text("x")
    if in_git:
        subprocess.run(["git", "init", "-q", tree], check=True)
    found = package(tree, tree / "run.yaml")
    assert own(found.files) == OURS
    assert r"caf\xe9.txt" in found.left_out
    assert in_git or {"pipe", "s.sock"} <= found.left_out.keys()  # git does not list them
    found.write(tmp_path / "a.zip")
    assert found.size > 0


def test_a_file_that_vanishes_or_changes_is_refused_in_one_line(tree: Path, tmp_path: Path) -> None:
    found = package(tree, tree / "run.yaml")
    (tree / "my_rewards.py").unlink()
    os.mkfifo(tree / "my_rewards.py")
    with pytest.raises(PackageRefusedError, match=r"my_rewards\.py cannot be sent \(.*named pipe"):
        found.write(tmp_path / "a.zip")
