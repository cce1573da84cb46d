"""The committed results of the resolution: JSON for the tests, a table for readers."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import Any

from tests.gpu_config.cases import Case, case_arguments, lock_digest

COLUMNS = {
    "executor": "executor",
    "attention": "attention",
    "flash_attention": "FlashAttention",
    "cuda_graphs": "CUDA graphs",
    "cuda_graph_support": "in batches",
    "largest_cuda_graph": "up to tokens",
    "scheduler": "scheduler",
    "model_runner": "model runner",
    "chunked_prefill": "chunked prefill",
    "sleep_mode": "sleep mode",
    "custom_all_reduce": "custom all-reduce",
}

PROSE_COLUMNS = 110

PREAMBLE = """\
# vLLM's configuration on simulated GPUs

`make gpu-config` wrote this page: vLLM's CUDA build resolved the engine's arguments for every combination of settings,
in Ray actors that were placed as rollout workers are, with a stub driver and simulated GPUs. No GPU was present and no
kernel ran: the table shows which code vLLM chooses, not that it works.
"""


def as_json(found: Mapping[Case, dict[str, Any]], packages: Mapping[str, str], lock: str) -> str:
    """Return the results of all cases as JSON."""
    cases = [{"case": case._asdict(), "resolved": values} for case, values in found.items()]
    return json.dumps({"lock_sha256": lock, "packages": packages, "cases": cases}, indent=1) + "\n"


def as_table(found: Mapping[Case, dict[str, Any]], packages: Mapping[str, str], owned: str) -> str:
    """Return a page with a row for each combination. Cases with and without adapters share a row if they agree."""
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    lines = [PREAMBLE, textwrap.fill(f"Environment: {versions}. {owned}", PROSE_COLUMNS), ""]
    header = ["GPU", "tensor parallel", "dtype", "sleep", "adapters", *COLUMNS.values()]
    lines += [_row(header), _row(["---"] * len(header))]
    for case, values in found.items():
        other = found[case._replace(adapters=not case.adapters)]
        if other == values and case.adapters:
            continue
        adapters = "with or without" if other == values else _word(case.adapters)
        settings = [case.device, case.tensor_parallel_size, case.dtype, _word(case.sleeps), adapters]
        lines.append(_row([*settings, *(_word(values[name]) for name in COLUMNS)]))
    return "\n".join(lines) + "\n"


def stale(committed: Mapping[str, Any], cases: tuple[Case, ...]) -> list[str]:
    """Return what has changed since the results were written, one line each."""
    lines = []
    if committed["lock_sha256"] != lock_digest():
        lines.append("requirements/gpu.txt has changed")
    found = {Case(**one["case"]): one["resolved"] for one in committed["cases"]}
    lines += [f"the results lack {case}" for case in cases if case not in found]
    lines += [f"the results have the unknown case {case}" for case in found if case not in cases]
    lines += [
        f"{case}: the engine's arguments have changed"
        for case in cases
        if case in found and found[case]["arguments"] != case_arguments(case)
    ]
    return lines


def _row(cells: list[Any]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _word(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
