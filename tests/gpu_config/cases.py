"""The combinations of settings that are resolved, and the engine's arguments for each of them."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

from cluster.core.actor_options import EngineOptions
from cluster.core.config import RunConfig
from cluster.training.actors import engine_options
from rollout.engine.vllm_args import vllm_arguments
from tests import PROJECT

LOCK = PROJECT / "requirements/gpu.txt"
RESULTS = PROJECT / "tests/gpu_config/results.json"
TABLE = PROJECT / "tests/gpu_config/results.md"

MODEL = "Qwen2.5-1.5B"
"""The model whose shape is used; `resolution.py` writes its configuration. The results name it in place of a path."""


class Case(NamedTuple):
    """One combination: a kind of GPU, and the settings on which the engine's arguments depend."""

    device: str
    tensor_parallel_size: int
    dtype: str
    sleeps: bool
    adapters: bool

    def __str__(self) -> str:
        sleep, adapters = ("sleep" if self.sleeps else "awake"), ("adapters" if self.adapters else "full")
        return f"{self.device}-tp{self.tensor_parallel_size}-{self.dtype}-{sleep}-{adapters}"


CASES = tuple(
    Case(*values)
    for values in itertools.product(
        ("H100", "A100"), (1, 2, 4), ("bfloat16", "float32"), (True, False), (True, False)
    )
)


def run_config(case: Case) -> RunConfig:
    """Return the configuration of a run with the settings of the case."""
    return RunConfig.model_validate(
        {
            "name": str(case),
            "model": {"source": MODEL, "dtype": case.dtype, "max_context_tokens": 4096},
            "rollout": {
                "workers": 1,
                "cpus_per_worker": 0.1,
                "gpus_per_worker": case.tensor_parallel_size,
                "tensor_parallel_size": case.tensor_parallel_size,
                "sleep_while_learning": case.sleeps,
                "gpu_memory_utilization": 0.5,
            },
            "learner": {
                "lora_rank": 16 if case.adapters else None,
                "gpus_per_rank": case.tensor_parallel_size,
            },
        }
    )


def case_options(case: Case, model: Path | str = MODEL) -> EngineOptions:
    """Return the options that a run gives to its rollout workers in this case."""
    return engine_options(run_config(case), Path(model))


def case_arguments(case: Case) -> dict[str, Any]:
    """Return the engine's arguments of the case, as JSON has them."""
    arguments: dict[str, Any] = json.loads(json.dumps(vllm_arguments(case_options(case))))
    return arguments


def lock_digest() -> str:
    """Return the SHA-256 of the lock file for GPUs."""
    return hashlib.sha256(LOCK.read_bytes()).hexdigest()
