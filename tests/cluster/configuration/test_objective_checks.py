"""An unknown objective, and settings that have no effect, are reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.configuration.preflight import preflight
from cluster.core.config import RunConfig
from learner.objective.objectives import OBJECTIVES
from tests.cluster.configuration.runs import only_problem, run_config


@pytest.mark.parametrize(
    ("misspelled", "meant"), [("gpso", "gspo"), ("drgrpo", "dr_grpo"), ("ahpo", "a_hpo"), ("Sapo", "sapo")]
)
def test_a_misspelled_objective_is_recognized(tmp_path: Path, misspelled: str, meant: str) -> None:
    problem = only_problem(run_config(tmp_path, objective={"name": misspelled}))
    assert problem.where == "objective.name"
    assert problem.fix.startswith(f"did you mean {meant}? ")


def test_an_unknown_objective_is_answered_with_all_known_names(tmp_path: Path) -> None:
    problem = only_problem(run_config(tmp_path, objective={"name": "unheard-of"}))
    assert problem.where == "objective.name"
    assert "'unheard-of'" in problem.what
    assert problem.fix.endswith(f"known objectives: {', '.join(OBJECTIVES)}")


@pytest.mark.parametrize(
    ("objective", "setting"),
    [
        ({"name": "sapo", "clip_low": 0.2}, "clip_low"),
        ({"name": "sapo", "clip_high": 0.2}, "clip_high"),
        ({"name": "a_hpo", "alpha": 0.6}, "alpha"),
        ({"name": "grpo", "alpha": 0.6}, "alpha"),
        ({"name": "hpo", "alpha_min": 0.2}, "alpha_min"),
        *(({"name": name, "alpha": 0.6}, "alpha") for name in ("maxrl", "rloo", "reinforce_pp")),
        *(({"name": name, "alpha_min": 0.2}, "alpha_min") for name in ("maxrl", "rloo", "reinforce_pp")),
        ({"name": "a_hpo_dual_clip", "alpha": 0.6}, "alpha"),
        ({"name": "hpo_dual_clip", "alpha_min": 0.2}, "alpha_min"),
        *(({"name": name, "dual_clip": 2.0}, "dual_clip") for name in ("a_hpo", "grpo", "sapo", "rloo")),
        ({"kl_estimator": "k3"}, "kl_estimator"),
        ({"kl_estimator": "k1", "kl_coefficient": 0}, "kl_estimator"),
        ({"importance_level": "sequence"}, "importance_level"),
        ({"overlong_tokens": 65}, "overlong_tokens"),
    ],
)
def test_a_setting_without_an_effect_is_refused(
    tmp_path: Path, objective: dict[str, Any], setting: str
) -> None:
    problem = only_problem(run_config(tmp_path, objective=objective))
    assert problem.where == f"objective.{setting}"
    assert "\n" not in str(problem)


@pytest.mark.parametrize(
    "objective",
    [
        {"name": "cispo", "clip_low": 0.2, "clip_high": 3.0},
        {"name": "hpo", "alpha": 0.5},
        {"name": "a_hpo", "alpha_min": 0.2},
        {"name": "hpo_dual_clip", "alpha": 0.5, "clip_low": 0.1, "clip_high": 0.3},
        {"name": "a_hpo_dual_clip", "alpha_min": 0.2, "advantage_scaling": "mean"},
        {"name": "grpo_dual_clip", "dual_clip": 1.2},
        {"name": "rloo", "clip_low": 0.1, "clip_high": 0.3},
        {"kl_coefficient": 0.1, "kl_estimator": "k1"},
        {"importance_cap": 2, "importance_level": "sequence"},
        {"overlong_tokens": 64},
        *({"name": name} for name in OBJECTIVES),
    ],
)
def test_settings_with_an_effect_are_accepted(tmp_path: Path, objective: dict[str, Any]) -> None:
    config = run_config(tmp_path, objective=objective)
    assert preflight(config) == []
    assert preflight(RunConfig.model_validate(config.model_dump())) == [], (
        "with the values of its config.yaml"
    )
