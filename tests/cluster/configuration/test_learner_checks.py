"""Settings of the learner that contradict each other, or do not fit the model, are reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from cluster.configuration.learner_checks import check_adapters, check_learner
from cluster.configuration.preflight import preflight
from cluster.core.config import RunConfig


def run_config(directory: Path, source: Path | None = None, **sections: Any) -> RunConfig:
    model = {"max_context_tokens": 256, "cache_directory": str(directory / "cache")}
    if source is not None:
        model["source"] = str(source)
    return RunConfig.model_validate(
        {"directory": str(directory / "runs"), "model": model, "steps": 10} | sections
    )


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """The directory of a Llama model, with everything that the checks read."""
    directory = tmp_path / "llama"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    matrix, vector = np.zeros((2, 2), np.float32), np.zeros(2, np.float32)
    save_file(
        {
            "model.embed_tokens.weight": matrix,
            "model.layers.0.self_attn.q_proj.weight": matrix,
            "model.layers.0.input_layernorm.weight": vector,
            "lm_head.weight": matrix,
        },
        directory / "model-1.safetensors",
    )
    save_file({"model.layers.1.self_attn.q_proj.weight": matrix}, directory / "model-2.safetensors")
    return directory


@pytest.mark.parametrize(
    ("zero_stage", "offload", "valid"),
    [
        (0, "none", True),
        (0, "optimizer", False),
        (1, "optimizer", False),
        (2, "optimizer", True),
        (3, "optimizer", True),
        (2, "parameters", False),
        (3, "parameters", True),
    ],
)
def test_only_partitioned_state_can_be_offloaded(
    tmp_path: Path, zero_stage: int, offload: str, valid: bool
) -> None:
    config = run_config(tmp_path, learner={"zero_stage": zero_stage, "offload": offload})
    problems = list(check_learner(config))
    assert len(problems) == (0 if valid else 1)
    for problem in problems:
        assert problem.where == "learner.offload"
        assert problem in preflight(config)


@pytest.mark.parametrize(("warmup_steps", "valid"), [(0, True), (59, True), (60, False), (500, False)])
def test_a_warm_up_that_is_longer_than_the_run_is_refused(
    tmp_path: Path, warmup_steps: int, valid: bool
) -> None:
    """10 batches, with 2 mini-batches in 3 epochs each."""
    learner = {"warmup_steps": warmup_steps, "mini_batches": 2, "epochs_per_batch": 3}
    config = run_config(tmp_path, learner=learner)
    problems = list(check_learner(config))
    assert len(problems) == (0 if valid else 1)
    for problem in problems:
        assert problem.where == "learner.warmup_steps"
        assert "the run has only 60" in problem.what


@pytest.mark.parametrize("setting", [{"lora_alpha": 8.0}, {"lora_target_modules": ["q_proj"]}])
def test_settings_of_adapters_need_adapters(tmp_path: Path, setting: dict[str, Any]) -> None:
    (name,) = setting
    (problem,) = check_adapters(run_config(tmp_path, learner=setting))
    assert problem.where == f"learner.{name}"
    assert list(check_adapters(run_config(tmp_path, learner={"lora_rank": 8} | setting))) == []


@pytest.mark.parametrize(
    ("targets", "unknown"),
    [
        (["all-linear"], None),
        (["q_proj"], None),
        (["layers.1.self_attn.q_proj"], None),
        (["q_proj", "query"], "query"),
        (["proj"], "proj"),
        (["input_layernorm"], "input_layernorm"),
        (["lm_head"], "lm_head"),
        (["embed_tokens"], "embed_tokens"),
        ([], "the list is empty"),
    ],
)
def test_target_modules_must_be_linear_layers_of_the_model(
    tmp_path: Path, llama: Path, targets: list[str], unknown: str | None
) -> None:
    learner = {"lora_rank": 8, "lora_target_modules": targets}
    problems = list(check_adapters(run_config(tmp_path, llama, learner=learner)))
    assert len(problems) == (unknown is not None)
    for problem in problems:
        assert problem.where == "learner.lora_target_modules"
        assert str(unknown) in problem.what
        assert problem.fix == "choose from q_proj, or set it to all-linear"


def test_adapters_need_safetensors_files(tmp_path: Path, llama: Path) -> None:
    for file in llama.glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    (problem,) = check_adapters(run_config(tmp_path, llama, learner={"lora_rank": 8}))
    assert "has no .safetensors files" in problem.what


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00", b"version https://git-lfs.github.com/spec/v1\n", b"\x02\0\0\0\0\0\0\0[]"],
)
def test_a_damaged_file_is_named(tmp_path: Path, llama: Path, content: bytes) -> None:
    (llama / "model-2.safetensors").write_bytes(content)
    (problem,) = check_adapters(run_config(tmp_path, llama, learner={"lora_rank": 8}))
    assert problem.where == "model.source"
    assert "model-2.safetensors is not a safetensors file" in problem.what


def test_the_files_of_a_model_that_must_be_built_are_not_checked(tmp_path: Path) -> None:
    learner = {"lora_rank": 8, "lora_target_modules": ["anything"]}
    assert list(check_adapters(run_config(tmp_path, learner=learner))) == []
