"""A dry run is a sound run, of the same actors."""

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
        {"objective": {"overlong_tokens": 100}},
        {"learner": {"warmup_steps": 50, "epochs_per_batch": 2}},
    ],
)
def test_it_is_sound_wherever_the_run_is(
    sections: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "a:1")  # whatever the size of this machine
    sections["rollout"] = {"max_response_tokens": 128, **sections.get("rollout", {})}
    config = RunConfig.model_validate(
        {"directory": str(tmp_path), "model": {"max_context_tokens": 256}, **sections}
    )
    assert preflight(config) == []
    dry = dry_run_of(config)
    assert preflight(dry) == []
    assert needs_of(dry) == needs_of(config)
    assert (dry.model, dry.task) == (config.model, config.task)
    assert RunConfig.model_validate(dry.model_dump()) == dry, "its values are allowed ones"


def test_it_leaves_the_run_itself_alone() -> None:
    config = RunConfig(name="x" * 100)
    dry = dry_run_of(config)
    assert dry.run_directory != config.run_directory
    assert RunConfig.model_validate({"name": dry.name}).name == dry.name
