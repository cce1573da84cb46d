"""Models that do not exist, and settings that they do not support, are reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.configuration.model_checks import check_context, check_prefix_sharing
from cluster.configuration.preflight import preflight
from reward.tasks.countdown.starter import STARTER
from tests.cluster.configuration.runs import only_problem, run_config


def test_a_context_longer_than_the_starter_supports_is_refused(tmp_path: Path) -> None:
    """The engine does not start with more positions than the `max_tokens` of the starter."""
    assert preflight(run_config(tmp_path, model={"max_context_tokens": STARTER.recipe.max_tokens})) == []
    problem = only_problem(run_config(tmp_path, model={"max_context_tokens": STARTER.recipe.max_tokens + 1}))
    assert problem.where == "model.max_context_tokens"
    assert str(STARTER.recipe.max_tokens) in str(problem)


@pytest.mark.parametrize(
    "source", ["nowhere", "./nowhere", "no/where/at/all", "nowhere.gguf", "package:nowhere/x.gguf"]
)
def test_a_model_that_does_not_exist_is_reported(tmp_path: Path, source: str) -> None:
    problem = only_problem(run_config(tmp_path, model={"source": source}))
    assert problem.where == "model.source"
    assert "nowhere" in problem.what or source in problem.what


def directory_model(tmp_path: Path, known: Any) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(known))
    return directory


@pytest.mark.parametrize("more", [0, 1])
def test_a_context_longer_than_max_position_embeddings_is_refused(tmp_path: Path, more: int) -> None:
    """The limit is exact to the token. vLLM refuses a longer context a minute later."""
    model = directory_model(tmp_path, {"max_position_embeddings": 512})
    config = run_config(tmp_path, model={"source": str(model), "max_context_tokens": 512 + more})
    problems = list(check_context(config))
    assert len(problems) == more
    for problem in problems:
        assert problem.where == "model.max_context_tokens"
        assert "more than the 512" in problem.what
        assert str(model) in problem.what
        assert problem.fix == "lower it to 512"
        assert problem in preflight(config)


@pytest.mark.parametrize(
    "known",
    [
        {},
        [],
        {"max_position_embeddings": None},
        {"max_position_embeddings": 128, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"max_position_embeddings": 128, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        {"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        {"max_position_embeddings": 4096, "rope_scaling": None},
    ],
)
def test_a_context_that_may_fit_is_not_refused(tmp_path: Path, known: Any) -> None:
    model = directory_model(tmp_path, known)
    config = run_config(tmp_path, model={"source": str(model), "max_context_tokens": 512})
    assert list(check_context(config)) == []


@pytest.mark.parametrize(
    ("known", "fit"),
    [
        ({"model_type": "llama"}, True),
        ({"model_type": "mistral", "sliding_window": 512}, True),
        ({"model_type": "mistral", "sliding_window": 511}, False),
        ({"model_type": "jamba", "mamba_d_state": 16}, False),
        ([], True),
    ],
)
@pytest.mark.parametrize("sharing", ["auto", "on", "off"])
def test_prefix_sharing_is_refused_for_models_that_do_not_support_it(
    tmp_path: Path, known: Any, fit: bool, sharing: str
) -> None:
    """Only `on` is refused; `auto` does not share prefixes for such a model."""
    source = {"source": str(directory_model(tmp_path, known)), "max_context_tokens": 512}
    config = run_config(tmp_path, model=source, learner={"prefix_sharing": sharing})
    problems = list(check_prefix_sharing(config))
    assert len(problems) == (0 if fit or sharing != "on" else 1)
    for problem in problems:
        assert problem.where == "learner.prefix_sharing"
        assert problem.fix == "set it to auto or off"
        assert problem in preflight(config)
