"""Every configuration for GPUs passes `launch.py check` against the machine that it names: without a GPU, without a
network and before its model is downloaded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.commands.options import checked_run
from cluster.configuration.loading import load_config
from cluster.configuration.machine import parse_machine
from cluster.configuration.machine_checks import known_shape
from cluster.configuration.memory_checks import cache_tokens, learner_fits
from launch import app
from tests import PROJECT

GPU_CONFIGURATIONS = sorted(
    file for file in (PROJECT / "configs").glob("*.yaml") if "gpus_per_worker" in file.read_text()
)


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty the hub's cache. The hub itself cannot be reached here (conftest.py)."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no-hub"))


def overrides(file: Path, tmp_path: Path) -> list[str]:
    """Return changes that keep the check short: a run directory that can be written, and few problems."""
    few = ["task.options.train_problems=8", "task.options.eval_problems=8"]
    return [f"directory={tmp_path}", *(few if file.stem.startswith("telelogs") else ())]


def machine_of(file: Path) -> str:
    """Return the machine in the command that the file's comment gives."""
    (machine,) = re.findall(rf"check configs/{file.name} --machine (\S+)", file.read_text())
    return machine


def test_there_is_one_for_each_size() -> None:
    assert {machine_of(file) for file in GPU_CONFIGURATIONS} == {
        "1xRTX4090-24G",
        "1xH100-80G",
        "8xH100-80G",
        "2x8xH100-80G",
    }


@pytest.mark.parametrize("file", GPU_CONFIGURATIONS, ids=lambda file: file.stem)
def test_it_passes_for_its_machine(file: Path, tmp_path: Path) -> None:
    arguments = ["check", str(file), *overrides(file, tmp_path), "--machine", machine_of(file)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "chosen by default: model.dtype=bfloat16 (the default on GPUs)" in result.output
    assert "learner rank" in result.output
    assert "/dev/shm" in result.output


@pytest.mark.parametrize("file", GPU_CONFIGURATIONS, ids=lambda file: file.stem)
def test_it_has_room_to_spare(file: Path, tmp_path: Path) -> None:
    """The learner fits into nine tenths of the memory, and an engine holds 32 sequences of full length."""
    machine = parse_machine(machine_of(file))
    config = checked_run(file, overrides(file, tmp_path), machine=machine).config
    shape = known_shape(config)
    assert shape is not None
    assert learner_fits(config, shape, 0.9 * machine.memory_gib)
    assert cache_tokens(config, shape, machine.memory_gib) >= 32 * config.model.max_context_tokens


@pytest.mark.parametrize("file", GPU_CONFIGURATIONS, ids=lambda file: file.stem)
def test_a_machine_that_is_too_small_is_refused(file: Path, tmp_path: Path) -> None:
    arguments = ["check", str(file), *overrides(file, tmp_path), "--machine", "1xRTX4090-4G"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    for line in result.output.splitlines():
        assert re.match(r"(--machine|learner|rollout\.gpu_memory_utilization): .*; ", line), line


def test_a_run_on_this_machine_needs_its_model(tmp_path: Path) -> None:
    """The sizes of a published model are known here, but a run loads its weights."""
    file = GPU_CONFIGURATIONS[0]
    result = CliRunner().invoke(app, ["check", str(file), *overrides(file, tmp_path)])
    assert result.exit_code == 2
    assert "model.source: there is no directory Qwen/" in result.output


def test_another_model_of_the_hub_says_how_to_get_its_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.models.source._known_to_hub", lambda repository, token: repository)
    file = PROJECT / "configs" / "gpu_1x80g.yaml"
    arguments = [*overrides(file, tmp_path), "model.source=some/model", "--machine", "1xH100-80G"]
    result = CliRunner().invoke(app, ["check", str(file), *arguments])
    assert result.exit_code == 0, result.output
    assert "memory: not estimated for some/model" in result.output
    assert "hf download some/model config.json" in result.output


def test_the_context_of_a_published_model_is_limited(tmp_path: Path) -> None:
    file = PROJECT / "configs" / "gpu_1x80g.yaml"
    arguments = [*overrides(file, tmp_path), "model.max_context_tokens=32769", "--machine", "1xH200-141G"]
    result = CliRunner().invoke(app, ["check", str(file), *arguments])
    assert result.exit_code == 2
    assert "model.max_context_tokens: 32769 is more than the 32768" in result.output


@pytest.mark.parametrize("machine", ["H100", "", "99999999999xH100-80G"])
def test_a_description_of_no_machine_is_answered_with_examples(machine: str) -> None:
    result = CliRunner().invoke(app, ["check", "configs/demo.yaml", "--machine", machine])
    assert result.exit_code == 2
    assert "2x8xH100-80G" in result.output


def test_the_defaults_of_the_devices_are_left_to_the_devices() -> None:
    """So that the same file is good for a GPU with more memory."""
    for file in GPU_CONFIGURATIONS:
        config = load_config(file).config
        assert "dtype" not in config.model.model_fields_set
        assert not {"gradient_checkpointing", "micro_batch_tokens"} & config.learner.model_fields_set
