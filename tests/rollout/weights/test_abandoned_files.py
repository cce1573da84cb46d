"""Abandoned weight files: those of other users hinder no worker, and our own are deleted by the next run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rollout.weights.node_files import NodeWeightFiles


def test_what_is_not_our_own_hinders_no_worker(tmp_path: Path) -> None:
    """Pipes, links, directories and files of other users in place of abandoned files are neither opened nor deleted."""
    strange = {
        name: tmp_path / f"hpo-weights-{name}"
        for name in ("pipe", "folder", "link", "foreign", "file", "loop")
    }
    for name in ("pipe", "folder", "link", "foreign"):
        strange[name].mkdir()
    os.mkfifo(strange["pipe"] / "presence")
    (strange["folder"] / "presence").mkdir()
    target = tmp_path / "target"
    target.write_text("")
    (strange["link"] / "presence").symlink_to(target)
    (strange["foreign"] / "presence").write_text("")
    strange["file"].write_text("")
    strange["loop"].symlink_to(strange["loop"])
    try:
        os.chown(strange["foreign"], 12345, 12345)
    except PermissionError:
        shutil.rmtree(strange.pop("foreign"))  # only root can give files away
    NodeWeightFiles("own", tmp_path).close()
    assert {path.name for path in tmp_path.iterdir()} == {*(path.name for path in strange.values()), "target"}


def test_what_an_interrupted_deletion_leaves_is_deleted(tmp_path: Path) -> None:
    for name in ("run.gone-x1", "empty"):
        (tmp_path / f"hpo-weights-{name}").mkdir()
    (tmp_path / "hpo-weights-run.gone-x1" / "3.safetensors").write_text("")
    NodeWeightFiles("own", tmp_path).close()
    assert not list(tmp_path.iterdir())
