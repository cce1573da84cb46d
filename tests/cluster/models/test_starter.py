"""A task brings its own starter model: adding one touches only the task's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

import reward.tasks
from cluster.core.config import ModelConfig, RunConfig, TaskConfig
from cluster.models.source import prepare_model, ready_directory
from cluster.models.starter import build_starter, find_starter, starter_key, starter_tasks

TASK_WITH_A_STARTER = """
from pydantic import BaseModel, ConfigDict
from cluster.core.types import Verdict
from reward.task import Starter, StarterRecipe

class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    digits: int = 10

class Echo:
    Options = Options
    starter = Starter(
        StarterRecipe(hidden_size=32, layers=1, heads=1, max_tokens=16, steps=2, batch_size=4),
        characters="0123456789\\n",
        added_tokens=("<answer>", "</answer>"),
    )
    def __init__(self, options): self.digits = options.digits
    def problems(self, split): return list(range(self.digits))
    def render(self, problem): return f"{problem}\\n"
    def verify(self, problem, response): return Verdict("incorrect", 0.0, None, "")
    def starter_examples(self):
        return [(self.render(p), f"<answer>{p}</answer>") for p in self.problems("train")]

TASK = Echo
"""


@pytest.fixture(autouse=True)
def _echo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tasks" / "starter_echo").mkdir(parents=True)
    (tmp_path / "tasks" / "starter_echo" / "task.py").write_text(TASK_WITH_A_STARTER)
    monkeypatch.setattr(reward.tasks, "__path__", [*reward.tasks.__path__, str(tmp_path / "tasks")])


def test_a_new_tasks_starter_is_found_and_trained(tmp_path: Path) -> None:
    assert "starter_echo" in starter_tasks()
    config = RunConfig(
        model=ModelConfig(source="starter", cache_directory=tmp_path / "cache"),
        task=TaskConfig(name="starter_echo", options={"digits": 8}),
    )
    directory = prepare_model(config, progress=print)
    assert (directory / "model.safetensors").is_file()
    assert ready_directory(config) == directory


def test_the_recipe_and_the_options_identify_a_starter() -> None:
    key = starter_key(TaskConfig(name="starter_echo"))
    assert key["task"] == {"digits": 10}
    assert key["recipe"]["steps"] == 2
    assert key != starter_key(TaskConfig(name="starter_echo", options={"digits": 8}))


@pytest.mark.parametrize("name", ["math", "python", "http", "nowhere"])
def test_a_task_without_a_starter_is_refused(name: str, tmp_path: Path) -> None:
    assert find_starter(name) is None
    with pytest.raises(ValueError, match=f"the task {name} has no starter model; set model.source to"):
        build_starter(TaskConfig(name=name), tmp_path, print)


def test_the_projects_own_starters() -> None:
    assert {"countdown", "telelogs"} <= set(starter_tasks())
    assert not {"math", "python", "http"} & set(starter_tasks())
