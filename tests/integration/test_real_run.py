"""Complete runs with all real parts: Ray, two vLLM workers, a reward actor and DeepSpeed ranks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from cluster.configuration.loading import load_config
from cluster.core.config import RunConfig
from cluster.metrics.catalogue import METRICS
from cluster.run_state.run_directory import RunDirectory
from reward.registry import build_task
from rollout.engine.tokenizer import PromptEncoder
from tests.cluster.tracking.wandb_runs import name_of, records
from tests.integration.runs import (
    assert_every_prompt_trained_once,
    finish,
    launch,
    rows_of,
    start,
    wait_for_step,
)

pytestmark = pytest.mark.timeout(1200)

ENGINE_ENVIRONMENT = os.environ | {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}

GREEDY_IN_VLLM = """
import json, sys
from vllm import LLM, SamplingParams
model, prompts, max_tokens = json.load(sys.stdin)
llm = LLM(model, dtype="float32", max_model_len=64, kv_cache_memory_bytes=2**26, enforce_eager=True)
outputs = llm.generate(
    [{"prompt_token_ids": prompt} for prompt in prompts], SamplingParams(temperature=0, max_tokens=max_tokens)
)
print("TOKENS", json.dumps([list(output.outputs[0].token_ids) for output in outputs]))
"""


def greedy_in_transformers(model: Path, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    import torch
    from transformers import AutoModelForCausalLM

    causal_lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return [
        causal_lm.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=max_tokens,
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]


def greedy_in_vllm(model: Path, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    result = subprocess.run(
        [sys.executable, "-c", GREEDY_IN_VLLM],
        input=json.dumps([str(model), prompts, max_tokens]),
        env=ENGINE_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    line = next(line for line in result.stdout.splitlines() if line.startswith("TOKENS "))
    return json.loads(line.removeprefix("TOKENS "))


def test_a_run_with_two_workers_and_two_ranks_serves_what_it_learns(
    write_config: Callable[..., Path],
) -> None:
    """The run is asynchronous, so weights change during responses in flight, and samples may be stale.

    Weights are broadcast to the workers that serve the previous version. The other runs of this module only pull.
    """
    config_file = write_config(
        name="graph",
        steps=6,
        rollout={"max_staleness": 1, "weight_transport": "broadcast"},
        learner={"ranks": 2, "zero_stage": 3},
        objective={"importance_cap": 2.0},
        evaluation={"every_steps": 3},
        tracking={"wandb": "offline"},
    )
    config = load_config(config_file).config
    output = finish(start(config_file), config)
    rows, directory = rows_of(config), RunDirectory(config.run_directory)
    assert set().union(*rows) - {"step", "time", "prompts", "dropped"} <= set(METRICS)

    assert [row["step"] for row in rows] == list(range(7))
    assert all(row["logprob_gap/probe_max"] < 1e-4 for row in rows)
    on_policy = [row for row in rows[1:] if row["staleness/max"] == 0]
    assert on_policy, "at least the first batch is sampled under the weights that are trained on it"
    assert all(row["logprob_gap/max"] < 1e-4 for row in on_policy)
    assert all(0 <= row["staleness/max"] <= 1 for row in rows[1:])
    assert any(row["objective/grad_norm"] > 0 for row in rows[1:])
    assert all(0.1 <= row["objective/alpha"] <= 1 for row in rows[1:])
    assert_every_prompt_trained_once(rows, config)

    assert directory.is_finished
    assert {log.name for log in directory.logs.glob("*.log")} == {
        "learner-0.log", "learner-1.log", "reward-0.log", "rollout-0.log", "rollout-1.log"
    }  # fmt: skip
    assert "weights v" in directory.transcript_file(6).read_text()
    logs = [directory.log_file(worker).read_text() for worker in ("rollout-0", "rollout-1")]
    taken = {
        int(version) for log in logs for version in re.findall(r"took weight version (\d+) over channel", log)
    }
    assert taken, "no version was broadcast"
    assert taken <= set(range(1, 7)), "version 0 is pulled"
    assert "could not be broadcast" not in " ".join(output.split())
    assert_offline_run_holds(directory, rows)
    assert_export_is_the_same_model_everywhere(config)
    assert_the_last_checkpoint_is_the_final_model(directory, exported=directory.path.with_name("exported"))


def assert_export_is_the_same_model_everywhere(config: RunConfig) -> None:
    model = RunDirectory(config.run_directory).final_model
    task, encoder = build_task(config.task.name, config.task.options), PromptEncoder(model)
    prompts = [list(encoder.encode(task.render(problem)).token_ids) for problem in task.problems("eval")[:8]]
    assert greedy_in_vllm(model, prompts, 24) == greedy_in_transformers(model, prompts, 24)


def assert_the_last_checkpoint_is_the_final_model(directory: RunDirectory, exported: Path) -> None:
    """Assert that `launch.py export` assembles the same model from the checkpoints of the two ranks."""
    launch("export", str(directory.path), str(exported))
    found, expected = (load_file(model / "model.safetensors") for model in (exported, directory.final_model))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        np.testing.assert_array_equal(found[name], weight, err_msg=name)
    files = {file.name for file in directory.final_model.iterdir()}
    assert {file.name for file in exported.iterdir()} == files
    assert [path.name for path in exported.parent.glob("*exported*")] == ["exported"], (
        "the export left temporary files"
    )


def assert_eval_finds_what_the_last_evaluation_found(config_file: Path, config: RunConfig) -> None:
    """Assert that `launch.py eval` reproduces the last evaluation of the run.

    It samples the same prompts with the same seeds, from weights that it loaded instead of pulling them.
    """
    model = RunDirectory(config.run_directory).final_model
    report = json.loads(launch("eval", str(config_file), f"model.source={model}", "--json"))
    last = rows_of(config)[-1]
    assert (report["prompts"], report["responses_per_prompt"], report["seed"]) == (8, 8, 0)
    assert report["pass_at_1"] == last["eval/pass_at_1"]
    assert report["pass_at_1_stderr"] == last["eval/pass_at_1_stderr"]
    assert report["response_length_mean"] == last["eval/response_length_mean"]
    passed = [report["pass_at_k"][k] for k in ("1", "2", "4", "8")]
    assert 0 <= report["pass_at_1"] == passed[0]
    assert passed == sorted(passed)
    assert passed[-1] <= 1
    logs = RunDirectory(config.run_directory).evaluation.logs
    assert {log.name for log in logs.iterdir()} == {"reward-0.log", "rollout-0.log", "rollout-1.log"}


def assert_offline_run_holds(directory: RunDirectory, rows: list[dict[str, Any]]) -> None:
    """Assert that the file of the offline W&B run contains the reward of each step."""
    (path,) = directory.wandb.rglob("*.wandb")
    rewards = [
        json.loads(item.value_json)
        for record in records(path)
        for item in record.history.item
        if name_of(item) == "reward/mean"
    ]
    assert rewards == [pytest.approx(row["reward/mean"]) for row in rows[1:]]


@pytest.mark.slow
def test_a_run_survives_a_killed_worker_and_a_refused_network(write_config: Callable[..., Path]) -> None:
    """One rollout worker gets SIGKILL during the run. The run completes, and no prompt is lost or trained on twice."""
    config_file = write_config(
        name="killed",
        steps=24,
        evaluation={"every_steps": 12, "responses_per_prompt": 8},
        tracking={"wandb": "online"},
    )
    config = load_config(config_file).config
    process = start(config_file, "--quiet", WANDB_API_KEY="0" * 40, WANDB_BASE_URL="http://127.0.0.1:9")
    wait_for_step(config, 3, process)
    victim = next(
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "RolloutWorker" in " ".join(child.cmdline() or [child.name()])
    )
    engines = victim.children(recursive=True)
    victim.send_signal(signal.SIGKILL)
    output = finish(process, config)

    rows = rows_of(config)
    assert "rollout-" in output
    assert "was lost" in output
    assert rows[-1]["fleet/restarts"] == 1
    assert [row["step"] for row in rows] == list(range(25))
    assert all(row["staleness/max"] == 0 for row in rows[1:])
    assert_every_prompt_trained_once(rows, config)
    _, alive = psutil.wait_procs(engines, timeout=30)
    assert not alive, "the engine of the dead worker is still running"
    assert_eval_finds_what_the_last_evaluation_found(config_file, config)
