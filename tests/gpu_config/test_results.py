"""The committed results of `make gpu-config` are those of the present lock and the present arguments.

These tests need neither a GPU nor vLLM's CUDA build.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from tests.gpu_config.cases import CASES, RESULTS, Case, case_arguments
from tests.gpu_config.results import stale


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return results


def test_the_results_are_of_the_present_lock_and_arguments(committed: dict[str, Any]) -> None:
    assert not stale(committed, CASES), "run: make gpu-config, and commit tests/gpu_config/results.*"


def test_a_change_of_the_lock_or_of_an_argument_is_noticed(committed: dict[str, Any]) -> None:
    """Otherwise the test above could not fail."""
    changed = copy.deepcopy(committed)
    changed["lock_sha256"] = "0"
    changed["cases"][0]["resolved"]["arguments"]["dtype"] = "float16"
    removed = Case(**changed["cases"].pop()["case"])
    lines = stale(changed, CASES)
    assert lines == [
        "requirements/gpu.txt has changed",
        f"the results lack {removed}",
        f"{CASES[0]}: the engine's arguments have changed",
    ]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_arguments_name_everything_that_depends_on_the_settings(case: Case) -> None:
    arguments = case_arguments(case)
    assert arguments["dtype"] == case.dtype
    assert arguments["tensor_parallel_size"] == case.tensor_parallel_size
    assert arguments["distributed_executor_backend"] == ("mp" if case.tensor_parallel_size > 1 else "uni")
    assert arguments["enable_sleep_mode"] is case.sleeps
    assert arguments["gpu_memory_utilization"] == 0.5
    only_on_cpu = {"kv_cache_memory_bytes", "enforce_eager", "enable_chunked_prefill"}
    assert not only_on_cpu & set(arguments)
