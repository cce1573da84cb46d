"""The objectives that a run can choose from: one small file each, and this table of them.

To add one, write its file beside the others, name it here and in `ObjectiveConfig.name`, and test it against its
formula in `tests/learner/test_objectives.py`. Nothing else asks for an objective's name.

Torch-free to import: the files do their arithmetic with the methods of the tensors that they are given. What all
objectives share, and needs torch, is in `loss.py`.
"""

from __future__ import annotations

from dataclasses import asdict

from cluster.config import ObjectiveConfig
from learner.objectives.cispo import CISPO
from learner.objectives.dapo import DAPO
from learner.objectives.dr_grpo import DR_GRPO
from learner.objectives.grpo import GRPO
from learner.objectives.gspo import GSPO
from learner.objectives.hpo import A_HPO, HPO
from learner.objectives.objective import Defaults, Objective, Surrogate
from learner.objectives.sapo import SAPO

OBJECTIVES: dict[str, Objective] = {
    "grpo": GRPO,
    "dr_grpo": DR_GRPO,
    "dapo": DAPO,
    "gspo": GSPO,
    "sapo": SAPO,
    "cispo": CISPO,
    "hpo": HPO,
    "a_hpo": A_HPO,
}


def chosen(config: ObjectiveConfig) -> tuple[Objective, ObjectiveConfig]:
    """The objective that `config` names, and the settings with its defaults where they are null."""
    objective = OBJECTIVES[config.name]
    missing = {
        name: default for name, default in asdict(objective.defaults).items() if getattr(config, name) is None
    }
    return objective, config.model_copy(update=missing)


__all__ = ["OBJECTIVES", "Defaults", "Objective", "Surrogate", "chosen"]
