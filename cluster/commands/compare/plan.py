"""Turn the YAML file of a comparison into its runs, or into a list of all its mistakes.

Torch-free and Ray-free, like `cluster.configuration.loading`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.commands.compare.comparison_file import (
    IRRELEVANT,
    ComparisonConfig,
    TuningConfig,
    check,
    check_tuning,
    value_text,
)
from cluster.configuration.loading import load_config, read_yaml, validate
from cluster.configuration.machine_checks import with_chosen_defaults
from cluster.configuration.preflight import Check, preflight
from cluster.configuration.task_checks import once_per_task
from cluster.core.addresses import cluster_address
from cluster.core.config import RunConfig
from cluster.core.problem import Problem
from cluster.run_state.run_directory import differences
from learner.objective.objectives import resolve


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a comparison."""

    variant: str
    seed: int
    config: RunConfig
    arguments: tuple[str, ...]
    """The arguments of `launch.py train` that start this run by hand."""
    value: float | None = None
    """The value of the tuned setting; None without tuning."""

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.config.name


@dataclass(frozen=True, slots=True)
class Tuning:
    """The planned tuning of a comparison."""

    config: TuningConfig
    directory: Path
    """The absolute path of the folder for its logs and run directories, beside that of the comparison."""
    runs: tuple[PlannedRun, ...]
    """The runs, seed by seed: all variants with all values."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A planned comparison."""

    name: str
    directory: Path
    """The absolute path of the folder for tables, plots, logs and run directories."""
    variants: tuple[str, ...]
    baseline: str
    seeds: tuple[int, ...]
    runs: tuple[PlannedRun, ...]
    """The runs, seed by seed, so that early results already compare all variants. With tuning there is one for each
    value of the grid, all with the same name, until `with_values` selects one of them."""
    tuning: Tuning | None = None

    @property
    def others(self) -> tuple[str, ...]:
        """All variants except the baseline."""
        return tuple(variant for variant in self.variants if variant != self.baseline)

    def with_values(self, chosen: Mapping[str, float]) -> Comparison:
        """Return the comparison in which each variant has the chosen value of the tuned setting."""
        return replace(self, runs=tuple(run for run in self.runs if run.value == chosen[run.variant]))

    def of_variant(self, variant: str) -> list[PlannedRun]:
        """Return the runs of a variant."""
        return [run for run in self.runs if run.variant == variant]


def load_comparison(
    path: Path, overrides: Sequence[str] = (), address: str | None = None
) -> tuple[Comparison, list[Problem]]:
    """Read the file and apply `overrides` to all runs. The comparison is valid only if there are no problems.

    Raises:
        AddressError: if the address of the cluster is none.
    """
    values, problems = read_yaml(path)
    config, schema_problems = validate(ComparisonConfig, values)
    problems += schema_problems
    if values or not problems:  # an empty file is read without a problem
        problems += check(config, overrides)
    if config.tuning is not None:
        is_readable = not any(problem.where.startswith("tuning.") for problem in schema_problems)
        mistakes = [*check_tuning(config, config.tuning, overrides)] if is_readable else []
        problems += mistakes
        if mistakes or not is_readable:
            config = config.model_copy(update={"tuning": None})
    at_address = [f"cluster.address={address}"] if address else []
    comparison, plan_problems = _planned(path, config, [*overrides, *at_address])
    return comparison, [*dict.fromkeys([*problems, *plan_problems, *_check_runs(comparison)])]


def _planned(
    path: Path, config: ComparisonConfig, overrides: Sequence[str]
) -> tuple[Comparison, list[Problem]]:
    """Plan all runs. Those of other seeds have the same problems, so each variant is checked once with each value."""
    directory = (config.directory.expanduser() / config.name).absolute()
    grid = config.tuning.values if config.tuning else (None,)
    task_check = once_per_task()
    runs, found = [], dict[str, dict[float | None, list[Problem]]]()
    for seed, variant, value in itertools.product(config.seeds, config.variants, grid):
        run, problems = _plan(path, config, variant, seed, overrides, value, task_check)
        runs.append(run)
        found.setdefault(variant, {}).setdefault(value, problems)
    tuning = None
    if config.tuning is not None:
        tuning_runs = []
        for seed, variant, value in itertools.product(config.tuning.seeds, config.variants, grid):
            run, problems = _plan(path, config, variant, seed, overrides, value, task_check, is_tuning=True)
            tuning_runs.append(run)
            found[variant][value] += problems
        tuning = Tuning(config.tuning, directory.with_name(f"{config.name}.tuning"), tuple(tuning_runs))
    comparison = Comparison(
        config.name,
        directory,
        tuple(config.variants),
        config.baseline or next(iter(config.variants), ""),
        config.seeds,
        tuple(runs),
        tuning,
    )
    setting = config.tuning.setting if config.tuning else ""
    return comparison, [
        problem for variant, by_value in found.items() for problem in _located(variant, setting, by_value)
    ]


def _located(
    variant: str, setting: str, by_value: Mapping[float | None, Sequence[Problem]]
) -> Iterator[Problem]:
    """Yield the problems of a variant. Those that only some values of the tuned setting cause name the value."""
    everywhere = set.intersection(*(set(problems) for problems in by_value.values()))
    for value, problems in by_value.items():
        for problem in problems:
            cause = "" if value is None or problem in everywhere else f" with {setting}={value_text(value)}"
            yield Problem(f"variant {variant}{cause}: {problem.where}", problem.what, problem.fix)


def settings_changed(saved: RunConfig, planned: RunConfig) -> list[str]:
    """Return the settings that differ between an earlier run and the planned one, if results depend on them."""
    return [line for line in differences(saved, planned) if not line.startswith(IRRELEVANT)]


def _plan(
    path: Path,
    comparison: ComparisonConfig,
    variant: str,
    seed: int,
    overrides: Sequence[str],
    value: float | None,
    task_check: Check,
    *,
    is_tuning: bool = False,
) -> tuple[PlannedRun, list[Problem]]:
    """Return a run, and its problems. Those that need a preflight are found at the comparison's first seed."""
    base = path.parent / comparison.base
    tuned = [] if comparison.tuning is None or value is None else [value_text(value)]
    group = f"{comparison.name}.tuning" if is_tuning else comparison.name
    arguments = [
        *comparison.overrides,
        *comparison.variants[variant],
        *overrides,
        *(f"{comparison.tuning.setting}={text}" for text in tuned if comparison.tuning),
        f"seed={seed}",
        f"name={'.'.join([group, variant, *(f'at{text}' for text in tuned if is_tuning), f'seed{seed}'])}",
        f"directory={comparison.directory / group}",
        f"tracking.wandb_group={group}",
    ]
    loaded = load_config(base, arguments)
    cluster_address(loaded.config.cluster.address)  # refused before anything is written
    config, _ = with_chosen_defaults(loaded.config)  # as the training chooses them
    problems = list(loaded.problems)
    if loaded.readable and seed == comparison.seeds[0]:
        problems += preflight(config, task_check=task_check)
    return PlannedRun(variant, seed, config, (str(base), *arguments), value), problems


def _check_runs(comparison: Comparison) -> Iterator[Problem]:
    """Yield variants with equal settings, and a tuning by a measure that the runs do not have. Runs of other seeds
    differ only in the seed, so the first one is enough."""
    first = {run.variant: run for run in reversed(comparison.runs)}  # of the first seed, with the first value
    for one, other in itertools.combinations([first[variant] for variant in comparison.variants], 2):
        if not settings_changed(one.config, other.config):
            yield Problem(
                f"variant {other.variant}",
                f"its settings equal those of {one.variant}",
                "remove one of the two",
            )
    if (
        comparison.tuning is not None
        and comparison.tuning.config.measure == "pass_at_k_final"
        and comparison.runs[0].config.evaluation.responses_per_prompt == 1
    ):
        yield Problem(
            "tuning.measure",
            "evaluations have no pass@k, because evaluation.responses_per_prompt is 1",
            "set it to 2 or more in overrides, or choose another measure",
        )


def same_gradient(comparison: Comparison) -> list[list[str]]:
    """Return the groups of variants whose gradients are equal at every step by theory, so that they differ only by
    noise.

    At ratio 1 (on-policy, one optimizer step per batch) the surrogate makes no difference (docs/objectives.md). The
    variants of a group have equal settings apart from the objective.
    """
    groups: dict[object, list[str]] = {}
    for run in comparison.runs:
        config, objective = run.config, run.config.objective
        if (
            run.seed == comparison.seeds[0]
            and config.rollout.max_staleness == 0
            and config.optimizer_steps_per_batch == 1
            and objective.importance_cap is None  # a weight acts on all tokens of the ratio
        ):
            without = {"name": "", "clip_low": None, "clip_high": None, "advantage_scaling": None}
            rest = config.model_copy(update={"name": "", "objective": objective.model_copy(update=without)})
            key = (resolve(objective).on_policy_gradient(objective), rest.model_dump_json())
            groups.setdefault(key, []).append(run.variant)
    return [variants for variants in groups.values() if len(variants) > 1]
