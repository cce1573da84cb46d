"""The frozen reference: when there is one, what it says, and what it costs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cluster.core.actor_options import LearnerOptions
from cluster.core.config import LearnerConfig, ObjectiveConfig
from cluster.core.types import TrainingSample
from learner.engine.reference_policy import FrozenModel, build_reference
from learner.model.policy import TokenBatch, response_logprobs
from learner.model.policy_setup import prepare_policy
from tests.builders import tiny_llama


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_llama().float().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def engine_around(model: Any) -> Any:
    """As much of one as the reference looks at."""
    policy, _ = prepare_policy(model, LearnerConfig(), max_context_tokens=None)
    return SimpleNamespace(module=policy, device=torch.device("cpu"))


def options(model: Path, **objective: Any) -> LearnerOptions:
    config = ObjectiveConfig.model_validate(objective)
    return LearnerOptions(str(model), "float32", 0.7, 0, LearnerConfig(zero_stage=2), config, (), 1)


@pytest.mark.parametrize("objective", [{}, {"kl_coefficient": 0.0}])
def test_without_a_weight_nothing_is_loaded(objective: dict[str, Any]) -> None:
    nowhere = options(Path("/there/is/no/model"), **objective)
    assert build_reference(engine_around(tiny_llama()), nowhere) is None


def test_it_says_what_the_model_said_when_the_run_started(saved: Path) -> None:
    """This includes prompts that responses share, and does not depend on later training."""
    engine = engine_around(tiny_llama().float())
    reference = build_reference(engine, options(saved, kl_coefficient=0.1))
    assert reference is not None
    logprobs = np.zeros(3, dtype=np.float32)
    samples = [
        TrainingSample(np.arange(4), np.array(ids), logprobs, 1.0, 1.0) for ids in ([5, 6, 7], [8, 9, 1])
    ]
    batch = TokenBatch.from_micro_batch((tuple(samples),), engine.device)
    with torch.no_grad():
        expected, _ = response_logprobs(engine.module, batch, 0.7)
        for parameter in engine.module.parameters():
            parameter += 0.1
        assert not torch.allclose(response_logprobs(engine.module, batch, 0.7)[0], expected, atol=0.1)
    torch.testing.assert_close(reference.logprobs(batch, 0.7), expected)
    assert not reference.logprobs(batch, 0.7).requires_grad


def test_on_cpu_its_weights_lie_in_the_models_file(saved: Path) -> None:
    """So that all ranks of a machine share them, and they take no memory that the kernel could not have back."""
    reference = FrozenModel(engine_around(tiny_llama()), options(saved, kl_coefficient=0.1))
    mapped = [
        range(*(int(end, 16) for end in line.split()[0].split("-")))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if str(saved) in line
    ]
    for name, parameter in reference._policy.named_parameters():
        assert any(parameter.data_ptr() in addresses for addresses in mapped), name
        assert not parameter.requires_grad
