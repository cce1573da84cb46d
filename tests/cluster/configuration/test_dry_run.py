"""A dry run is valid and has the actors of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.configuration.dry_run import dry_run_of
from cluster.configuration.preflight import preflight
from cluster.core.config import RunConfig
from cluster.runtime.capacity import needs_of


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"learner": {"mini_batches": 4, "ranks": 2, "cpus_per_rank": 0.1}},
        {"rollout": {"dynamic_sampling_limit": 4}},
        {"rollout": {"adaptive_budget": 600}},
        {
            "rollout": {"adaptive_budget": 512},
            "learner": {"mini_batches": 4, "ranks": 2, "cpus_per_rank": 0.1},
        },
        {"objective": {"overlong_tokens": 100}},
        {"learner": {"warmup_steps": 50, "epochs_per_batch": 2}},
    ],
)
def test_the_dry_run_of_a_valid_run_is_valid(
    sections: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "a:1")  # resources of this machine are not checked
    sections["rollout"] = {"max_response_tokens": 128, **sections.get("rollout", {})}
    config = RunConfig.model_validate(
        {"directory": str(tmp_path), "model": {"max_context_tokens": 256}, **sections}
    )
    assert preflight(config) == []
    dry = dry_run_of(config)
    assert preflight(dry) == []
    assert needs_of(dry) == needs_of(config)
    assert (dry.model, dry.task) == (config.model, config.task)
    assert RunConfig.model_validate(dry.model_dump()) == dry, "its values are valid"


def test_the_dry_run_has_a_run_directory_of_its_own() -> None:
    config = RunConfig(name="x" * 100)
    dry = dry_run_of(config)
    assert dry.run_directory != config.run_directory
    assert RunConfig.model_validate({"name": dry.name}).name == dry.name
