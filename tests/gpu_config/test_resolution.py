"""vLLM's CUDA build resolves the intended configuration for every combination of settings: `make gpu-config`.

It runs in the environment of requirements/gpu.txt, and writes `results.json` and `results.md`.
"""

from __future__ import annotations

import asyncio
import sysconfig
from dataclasses import asdict
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from requirements.owned_files import read_packages, report
from requirements.simulated_gpu import build_stub
from tests.gpu_config.cases import CASES, RESULTS, TABLE, Case, case_arguments, case_options, lock_digest
from tests.gpu_config.results import as_json, as_table

pytestmark = [pytest.mark.gpu_config, pytest.mark.timeout(3600)]

ANSWER_WITHIN_S = 1200.0
"""The deadline of one actor, which imports vLLM and resolves the cases of one kind of GPU and one number of them."""
GPUS = 4
PACKAGES = ("vllm", "torch", "flashinfer-python", "nvidia-cutlass-dsl", "triton", "ray", "transformers")


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, dict[str, Any]]:
    """Resolve all cases, one actor per kind and number of GPUs, and write the results."""
    from tests.gpu_config import resolution

    stub, model = tmp_path_factory.mktemp("stub"), tmp_path_factory.mktemp("model")
    build_stub(stub)
    resolution.write_model(model)
    found: dict[Case, dict[str, Any]] = {}
    with resolution.ray_with_simulated_gpus(GPUS, stub):
        for _, group in groupby(CASES, key=lambda case: (case.device, case.tensor_parallel_size)):
            cases = list(group)
            found |= asyncio.run(resolve_cases(cases, model, tmp_path_factory.mktemp("run")))
    packages, owned = environment()
    RESULTS.write_text(as_json(found, packages, lock_digest()), encoding="utf-8")
    TABLE.write_text(as_table(found, packages, owned), encoding="utf-8")
    return found


async def resolve_cases(cases: list[Case], model: Path, directory: Path) -> dict[Case, dict[str, Any]]:
    """Resolve cases that have the same kind and number of GPUs, in one actor."""
    from tests.gpu_config.resolution import ResolvingWorker, placed_worker

    options = [case_options(case, model) for case in cases]
    async with placed_worker(cases[0], model, directory) as worker, asyncio.timeout(ANSWER_WITHIN_S):
        resolved = await worker.call(ResolvingWorker.resolve, cases[0].device, options)
        chosen = await worker.call(ResolvingWorker.executor_without_argument, options[0])
    return {
        case: asdict(one) | {"arguments": case_arguments(case), "executor_without_argument": chosen}
        for case, one in zip(cases, resolved, strict=True)
    }


def environment() -> tuple[dict[str, str], str]:
    """Return the versions of the packages that matter most, and a sentence on the files of all packages."""
    directory = Path(sysconfig.get_path("purelib"))
    packages = read_packages(directory)
    faults, identical = report(packages, directory)
    files = sum(len(package.files) for package in packages)
    sentence = (
        f"The {len(packages)} packages have {files} files. The check of file ownership found {len(faults)} faults, and "
        f"{identical} files with the same content in several packages."
    )
    return {name: version(name) for name in PACKAGES}, sentence


def test_no_file_of_the_environment_belongs_to_two_packages() -> None:
    directory = Path(sysconfig.get_path("purelib"))
    faults, _ = report(read_packages(directory), directory)
    assert not faults


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_engine_has_the_intended_configuration(case: Case, resolved: dict[Case, dict[str, Any]]) -> None:
    found = resolved[case]
    bfloat16 = case.dtype == "bfloat16"
    expected = {
        "visible_gpus": ",".join(str(index) for index in range(case.tensor_parallel_size)),
        "executor": "UniProcExecutor" if case.tensor_parallel_size == 1 else "MultiprocExecutor",
        "worker": "vllm.v1.worker.gpu_worker.Worker",
        "model_runner": "V2",
        "scheduler": "AsyncScheduler",
        "chunked_prefill": True,
        "prefix_caching": True,
        "max_num_batched_tokens": 8192,
        # FlashAttention's kernels compute in 16 bits only.
        "attention": "FLASH_ATTN" if bfloat16 else "TRITON_ATTN",
        "flash_attention": {"H100": 3, "A100": 2}[case.device] if bfloat16 else None,
        "compilation": "VLLM_COMPILE",
        "cuda_graphs": "FULL_AND_PIECEWISE",
        "sleep_mode": case.sleeps,
    }
    assert {name: found[name] for name in expected} == expected


def test_without_the_argument_vllm_would_choose_an_executor_that_cannot_start(
    resolved: dict[Case, dict[str, Any]],
) -> None:
    """In a placement group vLLM prefers Ray's executor, which rejects a bundle with several GPUs. This also shows that
    the workers are placed as in a run."""
    chosen = {
        case.tensor_parallel_size: found["executor_without_argument"] for case, found in resolved.items()
    }
    assert "Ray" in chosen[2]
    assert "Ray" in chosen[4]


def test_adapters_do_not_change_the_engine(resolved: dict[Case, dict[str, Any]]) -> None:
    """The learner publishes adapters merged into the model, so that an engine never sees them."""
    for case, found in resolved.items():
        assert found == resolved[case._replace(adapters=False)]
