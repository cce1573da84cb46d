"""Turn the YAML file of a comparison into its runs, or into a list of all its mistakes.

Torch-free and Ray-free, like `cluster.configuration.loading`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from cluster.configuration.loading import load_config, read_yaml, validate
from cluster.configuration.machine_checks import with_chosen_defaults
from cluster.configuration.preflight import preflight
from cluster.core.config import RunConfig
from cluster.core.problem import Problem
from cluster.core.schema import Section
from cluster.run_state.run_directory import differences
from learner.objective.objectives import resolve

Name = Annotated[str, Field(max_length=40, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Seed = Annotated[int, Field(ge=0, strict=True)]

MANAGED = ("seed", "name", "directory")
"""The settings that the comparison sets for each run."""
MEASUREMENT = ("task.", "evaluation.", "reward.truncated_is_incorrect")
"""The settings that all runs must share: otherwise they answer different problems, or are scored differently."""
IRRELEVANT = ("directory", "name", "cluster.", "tracking.", "checkpoint.")
"""The settings that may change when a comparison is resumed: no result depends on them."""


class ComparisonConfig(Section):
    """One comparison. `configs/compare_objectives.yaml` is an example."""

    name: Name = "comparison"
    """The name of the comparison's folder, its runs and their group in W&B."""
    directory: Path = Path("runs")
    """The directory in which the comparison's folder is created. The runs' directories are in that folder."""
    base: Path = Path("demo.yaml")
    """The configuration of all runs, relative to the comparison's own file."""
    overrides: tuple[str, ...] = ()
    """Settings for all runs, as on the command line, such as `steps=100`."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    """The seeds. Each variant is trained once with each; a seed determines the order of prompts and the sampling."""
    variants: Mapping[Name, tuple[str, ...]] = Field(default_factory=dict)
    """The variants to compare: a name, and the settings in which the variant differs."""
    baseline: str | None = None
    """The variant from which the differences of the other variants are computed. With null it is the first one."""


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a comparison."""

    variant: str
    seed: int
    config: RunConfig
    arguments: tuple[str, ...]
    """The arguments of `launch.py train` that start this run by hand."""

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.config.name


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
    """The runs, seed by seed, so that early results already compare all variants."""

    @property
    def others(self) -> tuple[str, ...]:
        """All variants except the baseline."""
        return tuple(variant for variant in self.variants if variant != self.baseline)

    def of_variant(self, variant: str) -> list[PlannedRun]:
        """Return the runs of a variant."""
        return [run for run in self.runs if run.variant == variant]


def load_comparison(
    path: Path, overrides: Sequence[str] = (), address: str | None = None
) -> tuple[Comparison, list[Problem]]:
    """Read the file and apply `overrides` to all runs. The comparison is valid only if there are no problems."""
    values, problems = read_yaml(path)
    config, schema_problems = validate(ComparisonConfig, values)
    problems += schema_problems
    if values or not problems:  # an empty file is read without a problem
        problems += _check(config, overrides)
    at_address = [f"cluster.address={address}"] if address else []
    runs = tuple(
        _plan(path, config, variant, seed, [*overrides, *at_address])
        for seed, variant in itertools.product(config.seeds, config.variants)
    )
    baseline = config.baseline or next(iter(config.variants), "")
    directory = (config.directory.expanduser() / config.name).absolute()
    comparison = Comparison(
        config.name,
        directory,
        tuple(config.variants),
        baseline,
        config.seeds,
        tuple(planned for planned, _ in runs),
    )
    for run, run_problems in runs[: len(config.variants)]:  # each variant once
        problems += [
            Problem(f"variant {run.variant}: {problem.where}", problem.what, problem.fix)
            for problem in run_problems
        ]
    return comparison, [*dict.fromkeys([*problems, *_check_runs(comparison)])]


def settings_changed(saved: RunConfig, planned: RunConfig) -> list[str]:
    """Return the settings that differ between an earlier run and the planned one, if results depend on them."""
    return [line for line in differences(saved, planned) if not line.startswith(IRRELEVANT)]


def _plan(
    path: Path, comparison: ComparisonConfig, variant: str, seed: int, overrides: Sequence[str]
) -> tuple[PlannedRun, list[Problem]]:
    base = path.parent / comparison.base
    arguments = [
        *comparison.overrides,
        *comparison.variants[variant],
        *overrides,
        f"seed={seed}",
        f"name={comparison.name}.{variant}.seed{seed}",
        f"directory={comparison.directory / comparison.name}",
        f"tracking.wandb_group={comparison.name}",
    ]
    loaded = load_config(base, arguments)
    config, _ = with_chosen_defaults(loaded.config)  # as the training chooses them
    problems = list(loaded.problems)
    if loaded.readable and seed == comparison.seeds[0]:  # the runs with other seeds have the same problems
        problems += preflight(config)
    return PlannedRun(variant, seed, config, (str(base), *arguments)), problems


def _check(config: ComparisonConfig, overrides: Sequence[str]) -> Iterator[Problem]:
    """Yield the mistakes of the comparison itself."""
    if len(config.variants) < 2:
        yield Problem(
            "variants",
            f"expected two or more, got {len(config.variants)}",
            "name two or more, each with its list of settings",
        )
    if config.baseline is not None and config.baseline not in config.variants:
        yield Problem(
            "baseline", f"no such variant: {config.baseline}", f"choose one of {', '.join(config.variants)}"
        )
    if len(set(config.seeds)) < len(config.seeds):
        yield Problem(
            "seeds",
            "a seed is repeated",
            "list each seed once, because a repeated run gives no new information",
        )
    for where, settings in [("overrides", config.overrides), ("the command line", overrides)]:
        for key in _keys(settings):
            if key in MANAGED:
                yield Problem(
                    f"{where}: {key}",
                    "the comparison sets it for each run",
                    "use seeds, name and directory of the file instead",
                )
    varied = {key for settings in config.variants.values() for key in _keys(settings)}
    for key in sorted(varied & set(_keys(overrides))):
        yield Problem(
            key,
            "the variants set it differently",
            "remove it from the command line",
        )
    for variant, settings in config.variants.items():
        for key in _keys(settings):
            if key in MANAGED:
                yield Problem(f"variant {variant}: {key}", "the comparison sets it for each run", "remove it")
            elif key.startswith(MEASUREMENT):
                yield Problem(
                    f"variant {variant}: {key}",
                    "the variants would be measured on different problems or with different scoring",
                    "set it in overrides, which applies to all runs",
                )


def _check_runs(comparison: Comparison) -> Iterator[Problem]:
    """Yield variants with equal settings. Runs of other seeds differ only in the seed, so the first one is enough."""
    first = [run for run in comparison.runs if run.seed == comparison.seeds[0]]
    for one, other in itertools.combinations(first, 2):
        if not settings_changed(one.config, other.config):
            yield Problem(
                f"variant {other.variant}",
                f"its settings equal those of {one.variant}",
                "remove one of the two",
            )


def _keys(settings: Sequence[str]) -> list[str]:
    return [setting.partition("=")[0] for setting in settings]


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
