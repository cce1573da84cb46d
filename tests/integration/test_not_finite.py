"""A real run into a number that is not finite: it stops before anything of it is kept, and is resumed past it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cluster.configuration.loading import load_config
from cluster.run_state.run_directory import RunDirectory
from cluster.tracking.kept_batch import read_batch
from tests.integration.runs import launch, rows_of, start

pytestmark = [pytest.mark.timeout(2400), pytest.mark.slow]

SCORING = '''
import pathlib

def score(problem, response):
    """Rewards are huge after the first checkpoint, as long as the trigger is there."""
    huge = pathlib.Path("TRIGGER").exists() and pathlib.Path("CHECKPOINT").exists()
    return (1e308 if huge else 1.0) * (sum(map(ord, response)) % 2)
'''


def unsound(checkpoint: Path) -> list[str]:
    """Return the names of the tensors of a checkpoint that are not finite."""
    found = []
    for file in checkpoint.rglob("*model_states.pt"):
        state = torch.load(file, map_location="cpu", weights_only=False)
        found += [name for name, tensor in state["module"].items() if not tensor.isfinite().all()]
    return found


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_a_run_stops_at_a_number_that_is_not_finite_and_is_resumed_past_it(
    write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero_stage: int
) -> None:
    trigger = tmp_path / "trigger"
    trigger.touch()
    prompts = [f"{a} {b}={a + b}" for a in range(1, 9) for b in range(1, 9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    options = {"data": str(tmp_path / "rows.jsonl"), "style": "plain", "eval_fraction": 0.3}
    config_file = write_config(
        steps=4,
        task={"name": "python", "options": options | {"function": "huge_rewards:score"}},
        objective={"advantage_scaling": "none"},
        rollout={"workers": 1},
        learner={"zero_stage": zero_stage},
        checkpoint={"every_steps": 1, "keep": 1},
    )
    config = load_config(config_file).config
    run = RunDirectory(config.run_directory)
    first = run.checkpoints / "step-000001" / "COMPLETE"
    (tmp_path / "huge_rewards.py").write_text(
        SCORING.replace("TRIGGER", str(trigger)).replace("CHECKPOINT", str(first))
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    process = start(config_file)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1, output
    assert "Traceback" not in output
    (batch,) = run.failed_batch_files
    step = int(batch.name.removeprefix("step_").partition("-")[0])
    text = " ".join(output.split())
    assert f"in step {step}, " in text
    assert any(
        what in text
        for what in ("the gradient norm of", "the loss of", "DeepSpeed skipped", "the weights contain")
    ), output
    assert batch.name in text
    kept = list(run.checkpoints.glob("*/COMPLETE"))
    assert kept, "the last good checkpoint stays"
    for file in kept:
        assert int(file.parent.name.removeprefix("step-")) < step
        assert unsound(file.parent) == []
    assert [row["step"] for row in rows_of(config)] == list(range(step))
    rewards = [verdict.reward for group in read_batch(batch) for verdict in group.verdicts]
    assert 1e308 in rewards
    said = launch("replay", str(run.path), timeout_s=600)
    assert "reward 1e+308" in said
    assert "result: the update is finite" not in said

    trigger.unlink()
    process = start(config_file)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    rows = rows_of(config)
    assert [row["step"] for row in rows] == list(range(5))
    assert all(math.isfinite(row["objective/grad_norm"]) for row in rows[1:])
    for file in run.checkpoints.glob("*/COMPLETE"):
        assert unsound(file.parent) == []
