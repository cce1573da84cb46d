"""Settings of the learner that contradict each other, or the model, are found before anything starts."""

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
    """Of a Llama all that is looked at here."""
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
    ("zero_stage", "offload", "fits"),
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
def test_what_is_not_partitioned_is_not_offloaded(
    tmp_path: Path, zero_stage: int, offload: str, fits: bool
) -> None:
    config = run_config(tmp_path, learner={"zero_stage": zero_stage, "offload": offload})
    problems = list(check_learner(config))
    assert len(problems) == (0 if fits else 1)
    for problem in problems:
        assert problem.where == "learner.offload"
        assert problem in preflight(config)


@pytest.mark.parametrize(("warmup_steps", "fits"), [(0, True), (19, True), (20, False), (500, False)])
def test_a_run_that_ends_before_its_learning_rate_has_risen(
    tmp_path: Path, warmup_steps: int, fits: bool
) -> None:
    """10 batches of 2 optimizer steps each."""
    config = run_config(tmp_path, learner={"warmup_steps": warmup_steps, "mini_batches": 2})
    problems = list(check_learner(config))
    assert len(problems) == (0 if fits else 1)
    for problem in problems:
        assert problem.where == "learner.warmup_steps"
        assert "the run has only 20" in problem.what


@pytest.mark.parametrize(
    ("ranks", "gpus", "fits"), [(2, 1, True), (1, 0.5, True), (2, 0.5, False), (2, 0, True)]
)
def test_ranks_that_would_share_a_gpu(tmp_path: Path, ranks: int, gpus: float, fits: bool) -> None:
    config = run_config(tmp_path, learner={"ranks": ranks, "gpus_per_rank": gpus})
    assert [problem.where for problem in check_learner(config)] == ([] if fits else ["learner.gpus_per_rank"])


@pytest.mark.parametrize("setting", [{"lora_alpha": 8.0}, {"lora_target_modules": ["q_proj"]}])
def test_settings_of_adapters_without_adapters(tmp_path: Path, setting: dict[str, Any]) -> None:
    (name,) = setting
    (problem,) = check_adapters(run_config(tmp_path, learner=setting))
    assert problem.where == f"learner.{name}"
    assert list(check_adapters(run_config(tmp_path, learner={"lora_rank": 8} | setting))) == []


@pytest.mark.parametrize(
    ("targets", "stranger"),
    [
        (["all-linear"], None),
        (["q_proj"], None),
        (["layers.1.self_attn.q_proj"], None),
        (["q_proj", "query"], "query"),
        (["proj"], "proj"),
        (["input_layernorm"], "input_layernorm"),
        (["lm_head"], "lm_head"),
        (["embed_tokens"], "embed_tokens"),
        ([], "none are named"),
    ],
)
def test_target_modules_are_looked_for_in_the_models_files(
    tmp_path: Path, llama: Path, targets: list[str], stranger: str | None
) -> None:
    learner = {"lora_rank": 8, "lora_target_modules": targets}
    problems = list(check_adapters(run_config(tmp_path, llama, learner=learner)))
    assert len(problems) == (stranger is not None)
    for problem in problems:
        assert problem.where == "learner.lora_target_modules"
        assert str(stranger) in problem.what
        assert problem.fix == "name some of q_proj, or all-linear"


def test_a_model_without_safetensors_takes_no_adapters(tmp_path: Path, llama: Path) -> None:
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


def test_a_model_that_is_not_there_yet_is_not_looked_into(tmp_path: Path) -> None:
    learner = {"lora_rank": 8, "lora_target_modules": ["anything"]}
    assert list(check_adapters(run_config(tmp_path, learner=learner))) == []
