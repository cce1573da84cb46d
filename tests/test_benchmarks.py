"""Every benchmark runs at tiny sizes. Its measurements are not checked here; see benchmarks/results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import attention_cost, report, table
from benchmarks.marks import part_of
from benchmarks.report import RESULTS
from tests import PROJECT

WITH_ENGINES = (
    "rollout_throughput.py",
    "weight_publication.py",
    "reproducibility.py",
    "overlap.py",
    "memory_estimate.py",
)
"""The benchmarks that start engines, which takes a minute for each of them."""
OTHER_LONG_ONES = (
    "learner_speed.py",
    "learner_ranks.py --cases smollm2",
    "math_verdicts.py",
    "fleet_scale.py",
)
"""The benchmarks that compute for ten seconds or more even at tiny sizes."""


def run(script: str, *options: str) -> str:
    process = subprocess.run(
        [sys.executable, PROJECT / "benchmarks" / script, *options], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize(
    "command",
    [
        "logprob_memory.py",
        "reward_throughput.py",
        "telelogs_problems.py",
        "toy_map.py",
        "weight_broadcast.py",
        *(pytest.param(command, marks=pytest.mark.slow) for command in (*WITH_ENGINES, *OTHER_LONG_ONES)),
    ],
)
def test_every_benchmark_writes_a_report_at_tiny_sizes(command: str, tmp_path: Path) -> None:
    """Benchmarks that compare learners check on their own that all of them compute the same gradient."""
    run(*command.split(), "--smoke", "--output", str(tmp_path / "report.json"))
    cases = json.loads((tmp_path / "report.json").read_text())
    assert cases
    for case in cases.values():
        assert {"command", "commit", "machine", "versions"} < case.keys()
        assert all(seconds > 0 for seconds in case.get("median_s", {}).values())
        assert all(ratio > 0 for ratio in case.get("ratios", {}).values())


def test_stored_results_name_the_command_and_a_clean_commit() -> None:
    files = list(RESULTS.glob("*.json"))
    assert files
    for file in files:
        for case in json.loads(file.read_text()).values():
            assert case["command"].startswith(f"python benchmarks/{file.stem}.py"), file
            assert "--smoke" not in case["command"], file
            assert not case["commit"].endswith("-dirty"), file


def test_new_results_do_not_mark_the_commit_as_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The results of the first case have changed when those of the second are written."""
    results, code = tmp_path / "benchmarks" / "results", tmp_path / "code.py"
    results.mkdir(parents=True)
    kept = results / "kept.json"
    for file in (kept, code):
        file.write_text("")
    who = ["-c", "user.name=tester", "-c", "user.email=tester@example.org"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    monkeypatch.setattr("benchmarks.report.RESULTS", results)
    kept.write_text("{}")
    assert not report.conditions()["commit"].endswith("-dirty")
    code.write_text("changed")
    assert report.conditions()["commit"].endswith("-dirty")


@pytest.mark.parametrize("name", table.DOCUMENTS)
def test_documents_show_the_stored_results(name: str) -> None:
    shown = part_of(table.DOCS / name, table.MARKS)
    assert shown == table.tables(RESULTS, table.DOCUMENTS[name]), "run: python benchmarks/table.py --write"


def test_learner_md_shows_the_predicted_cost_of_attention() -> None:
    shown = part_of(attention_cost.DOCUMENT, attention_cost.MARKS)
    assert shown == attention_cost.table(), "run: python benchmarks/attention_cost.py --write"


@pytest.mark.parametrize(("prompt", "responses", "tokens"), [(7, 1, 3), (1, 4, 5), (9, 16, 2)])
def test_predicted_pairs_are_those_of_the_attention_patterns(
    prompt: int, responses: int, tokens: int
) -> None:
    owner = np.repeat(np.arange(responses + 1), [prompt, *[tokens] * responses])
    causal = np.tri(len(owner), dtype=bool)
    seen = causal & ((owner == 0) | (owner[:, None] == owner))
    found = attention_cost.costs(attention_cost.Sizes(), prompt, responses, tokens)
    assert found["split"].pairs == seen.sum()
    assert found["mask"].pairs == seen[:prompt].sum() + seen[prompt:].size
    assert found["alone"].pairs == responses * np.tri(prompt + tokens).sum()


def test_predictions_are_for_the_sizes_of_the_named_model() -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = attention_cost.Sizes()
    config = Qwen2Config(
        num_hidden_layers=1,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.key_heads,
        vocab_size=sizes.vocabulary,
    )
    with torch.device("meta"):
        layer = Qwen2ForCausalLM(config).model.layers[0]
    assert sizes.layer_parameters == sum(weight.numel() for weight in layer.parameters() if weight.dim() == 2)
