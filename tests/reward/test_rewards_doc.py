"""The examples in docs/rewards.md work as shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from cluster.configuration import task_checks
from cluster.configuration.loading import load_config
from cluster.configuration.preflight import preflight
from cluster.core.config import RunConfig
from reward.registry import build_task, task_class
from reward.service import make_scorer
from tests import PROJECT
from tests.builders import scored_by

DOCUMENT = (PROJECT / "docs" / "rewards.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert found, f"the document shows no {language}"
    return found


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Write the example's files into the working directory, with an empty model directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards.py").write_text(blocks("python")[0])
    (tmp_path / "sums.jsonl").write_text(blocks("json")[0])
    (tmp_path / "sums.yaml").write_text(blocks("yaml")[0])
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    small = ["rollout.cpus_per_worker=0.1", "learner.cpus_per_rank=0.1", "reward.cpus_per_worker=0.1"]
    loaded = load_config(tmp_path / "sums.yaml", ["model.source=./model", *small])
    assert not loaded.problems
    monkeypatch.setattr(task_checks, "_prompt_tokens", lambda config, task, problems: [50])
    return loaded.config


def test_the_example_passes_its_check(example: RunConfig) -> None:
    assert preflight(example) == []
    task = build_task("python", example.task.options)
    assert len(task.problems("train")) + len(task.problems("eval")) == 3


async def test_the_examples_verifier_scores_responses(example: RunConfig) -> None:
    scorer = make_scorer(example.task, example.reward, ["."], check=True)
    await scorer.start()
    correct, incorrect, empty = await scored_by(
        scorer, {"prompt": "What is 17 + 25?", "answer": "42"}, ["17 + 25 = 42\nAnswer: 42", "Answer: 43", ""]
    )
    await scorer.close()
    assert (correct.outcome, correct.reward, correct.answer) == ("correct", 1.0, "42")
    assert (incorrect.outcome, incorrect.reward, incorrect.answer) == ("incorrect", 0.0, "43")
    assert empty.outcome == "incorrect"


@pytest.mark.parametrize("text", blocks("yaml"))
def test_every_configuration_shown_is_valid(text: str) -> None:
    config = RunConfig.model_validate(yaml.safe_load(text))
    task_class(config.task.name).Options.model_validate(config.task.options)


def test_every_option_of_the_data_is_explained() -> None:
    from reward.dataset.rows import DatasetOptions

    for name in DatasetOptions.model_fields:
        assert f"`{name}`" in DOCUMENT, name
