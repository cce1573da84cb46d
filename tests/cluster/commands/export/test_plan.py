"""A possible export is planned, and an impossible one is refused with one line of reason and remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.commands.export.plan import plan_export
from cluster.commands.export.run import run_export
from cluster.core.config import RunConfig
from cluster.core.errors import RefusedError
from cluster.run_state.checkpoints import CheckpointStore
from cluster.run_state.lock_file import LockFile
from cluster.run_state.manifest import Manifest
from cluster.run_state.run_directory import RunDirectory
from cluster.run_state.run_lock import RunInUseError, lock_paths
from cluster.tracking import RunConsole
from tests.builders import make_progress


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Write a run with complete checkpoints of steps 50 and 100 and an incomplete one of step 150."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    directory = RunDirectory(tmp_path / "runs" / "first")
    directory.create()
    write_config(directory, model={"source": str(tmp_path / "model")})
    for step in (50, 100):
        save(directory, step)
    CheckpointStore(directory.checkpoints, keep=2).begin(150)
    return directory


def write_config(run: RunDirectory, **sections: Any) -> None:
    run.write_config(RunConfig.model_validate({"learner": {"cpus_per_rank": 0.1}} | sections))


def save(run: RunDirectory, step: int) -> None:
    store = CheckpointStore(run.checkpoints, keep=2)
    path = store.begin(step)
    (path / "learner").mkdir()
    (path / "learner" / "weights").write_bytes(bytes(100))
    store.commit(path, make_progress(step))


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(RefusedError) as caught:
        plan_export(*arguments, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert "; " in text, "the message names a remedy"
    return text


@pytest.mark.parametrize(("asked", "step"), [(None, 100), (100, 100), (50, 50)])
def test_the_newest_or_the_requested_checkpoint_is_chosen(
    run: RunDirectory, tmp_path: Path, asked: int | None, step: int
) -> None:
    plan = plan_export(run.path, tmp_path / "made" / "here", asked, address="head:6379")
    assert (plan.step, plan.checkpoint) == (step, run.checkpoints / f"step-{step:06d}")
    assert plan.destination == tmp_path / "made" / "here"
    assert not plan.destination.exists()
    assert plan.config.cluster.address == "head:6379"
    assert plan.run == run


def test_the_run_directory_may_have_been_moved(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The location in its configuration is ignored, and relative paths refer to the working directory."""
    run.path.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    plan = plan_export(Path("moved"), Path("here"))
    assert plan.checkpoint == tmp_path / "moved" / "checkpoints" / "step-000100"
    assert plan.destination == tmp_path / "here"


def test_an_empty_destination_is_accepted(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert plan_export(run.path, tmp_path / "empty").destination == tmp_path / "empty"


def full(path: Path) -> Path:
    path.mkdir()
    (path / "model.safetensors").touch()
    return path


def file(path: Path) -> Path:
    path.touch()
    return path


@pytest.mark.parametrize(
    ("occupied", "why"),
    [
        (full, "not an empty directory"),
        (file, "not an empty directory"),
        (lambda path: file(path) / "below", "taken: File exists"),
    ],
    ids=["full", "a file", "below a file"],
)
def test_a_destination_in_use_is_refused(
    run: RunDirectory, tmp_path: Path, occupied: Callable[[Path], Path], why: str
) -> None:
    destination = occupied(tmp_path / "taken")
    before = sorted(tmp_path.rglob("*"))
    text = refusal(run.path, destination)
    assert str(destination) in text
    assert why in text
    assert sorted(tmp_path.rglob("*")) == before


def test_a_step_without_a_checkpoint_is_refused_with_the_existing_steps(
    run: RunDirectory, tmp_path: Path
) -> None:
    for step in (150, 7):  # the checkpoint of step 150 is incomplete
        text = refusal(run.path, tmp_path / "here", step)
        assert f"step {step}" in text
        assert "50, 100" in text


def test_a_run_without_a_complete_checkpoint_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    for path in CheckpointStore(run.checkpoints, keep=2).complete().values():
        (path / "COMPLETE").unlink()
    assert "no complete checkpoint yet" in refusal(run.path, tmp_path / "here")


@pytest.mark.parametrize("name", ["nowhere", "model", "model/config.json"])
def test_a_directory_without_a_run_is_refused(run: RunDirectory, tmp_path: Path, name: str) -> None:
    text = refusal(tmp_path / name, tmp_path / "here")
    assert f"{tmp_path / name}: this is not a run directory" in text


def test_a_broken_configuration_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    run.config_file.write_text("stepps: 3\nseeed: 1")
    text = refusal(run.path, tmp_path / "here")
    assert str(run.config_file) in text
    assert "stepps" in text


def test_a_missing_model_is_named(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    text = refusal(run.path, tmp_path / "here")
    assert "no longer exists" in text
    assert str(tmp_path / "model") in text
    assert str(run.config_file) in text


def test_a_starter_model_is_not_built_again(run: RunDirectory, tmp_path: Path) -> None:
    """Its recipe may have changed, so that the weights would not fit, or the tokens would differ."""
    write_config(run, model={"source": "starter", "cache_directory": str(tmp_path / "cache")})
    text = refusal(run.path, tmp_path / "here")
    assert f"no longer in {tmp_path / 'cache'}" in text


def test_only_the_learner_must_fit_on_the_machine(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    model = {"source": str(tmp_path / "model")}
    write_config(run, model=model, rollout={"workers": 1000})
    assert plan_export(run.path, tmp_path / "here")
    write_config(run, model=model, learner={"ranks": 1000})
    assert "needs 1000 CPUs" in refusal(run.path, tmp_path / "here")


def test_a_damaged_checkpoint_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    """Damage is found even if the size is unchanged. Other checkpoints can still be exported."""
    (run.checkpoints / "step-000100" / "learner" / "weights").write_bytes(b"1" * 100)
    assert "learner/weights has SHA-256" in refusal(run.path, tmp_path / "here")
    assert plan_export(run.path, tmp_path / "here", 50).step == 50


def test_a_checkpoint_of_another_version_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    (run.checkpoints / "step-000100" / "COMPLETE").write_text('{"format": 3, "files": {}}')
    with pytest.raises(RefusedError, match="another version of this program"):
        plan_export(run.path, tmp_path / "here")


def test_a_checkpoint_is_kept_while_it_is_compared_with_its_manifest(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A live run saves twice meanwhile, and would delete it."""
    compare = Manifest.content_fault

    def slow(manifest: Manifest, checkpoint: Path) -> str | None:
        for step in (200, 250):
            save(run, step)
        return compare(manifest, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "content_fault", slow)
        assert plan_export(run.path, tmp_path / "here", 50).step == 50
    save(run, 300)
    assert "no complete checkpoint of step 50" in refusal(run.path, tmp_path / "here", 50)


def test_a_run_that_cannot_be_written_is_refused(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a hold on the checkpoint, a live run would delete it."""

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("cluster.run_state.lock_file._create", refuse)
    assert "checkpoints is not writable (Permission denied)" in refusal(run.path, tmp_path / "here")


def test_a_second_export_to_the_same_place_is_refused_before_anything_starts(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two to different places are not: they share the checkpoint."""
    seen: list[list[Path]] = []

    @contextmanager
    def started(*_: object) -> Iterator[None]:
        seen.append(CheckpointStore(run.checkpoints, keep=2).readers())
        raise RayNotNeededError
        yield

    monkeypatch.setattr("cluster.commands.export.run.ray_started", started)
    plan = plan_export(run.path, tmp_path / "here", 50)
    (path,) = lock_paths(plan.destination)
    other = LockFile.take(path)
    with RunConsole("export", 0, quiet=True) as console:
        with pytest.raises(RunInUseError, match="here is in use by"):
            run_export(plan, console)
        assert seen == []
        other.release()
        with pytest.raises(RayNotNeededError):
            run_export(plan, console)
    assert len(seen[0]) == 1, "the checkpoint is held while it is exported"
    assert CheckpointStore(run.checkpoints, keep=2).readers() == []
    assert not list(tmp_path.glob(".*"))


class RayNotNeededError(Exception):
    """Ends an export before Ray is started."""
