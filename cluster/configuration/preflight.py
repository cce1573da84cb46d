"""Find every problem of a configuration before a single actor starts. Torch-free.

Each check has one subject and yields its problems. None of the checks imports Ray, vLLM or torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from cluster.configuration.gpu_checks import check_gpus
from cluster.configuration.learner_checks import check_adapters, check_learner
from cluster.configuration.machine import Machine
from cluster.configuration.machine_checks import check_described, check_memory, with_chosen_defaults
from cluster.configuration.model_checks import check_context, check_model, check_prefix_sharing
from cluster.configuration.objective_checks import check_objective
from cluster.configuration.rescue_checks import check_rescue
from cluster.configuration.resource_checks import check_packages, check_resources, check_run_directory
from cluster.configuration.rollout_checks import check_rollout
from cluster.configuration.task_checks import check_task
from cluster.core.config import ACTOR_ROLES, ActorRole, RunConfig
from cluster.core.problem import Problem

Check = Callable[[RunConfig], Iterator[Problem]]
_CHECKS: tuple[Check, ...] = (
    check_rollout,
    check_learner,
    check_gpus,
    check_objective,
    check_rescue,
    check_context,
    check_prefix_sharing,
    check_adapters,
    check_run_directory,
    check_packages,
)


def preflight(
    config: RunConfig,
    roles: Collection[ActorRole] = ACTOR_ROLES,
    machine: Machine | None = None,
    task_check: Check = check_task,
) -> list[Problem]:
    """Return all problems of `config`, each once. Settings that it does not name have the values that a command would
    choose for its model and its devices.

    Args:
        roles: The actors that will run. Only their resources are checked.
        machine: The machine for which the run is meant; by default this one.
        task_check: The check of the task, which takes longest: `once_per_task()` for many similar configurations.
    """
    config, _ = with_chosen_defaults(config, machine)
    problems = [
        *check_model(config, elsewhere=machine is not None),
        *(problem for check in (*_CHECKS, task_check) for problem in check(config)),
    ]
    resources = check_resources(config, roles) if machine is None else check_described(config, machine, roles)
    return list(dict.fromkeys([*problems, *resources, *check_memory(config, roles, machine)]))
