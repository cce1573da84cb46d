"""From a comparison's YAML file to the runs that it consists of, or to a list of everything that is wrong with it.

Torch-free and Ray-free, like `cluster.configuration.loading`, whose ways it follows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from cluster.configuration.loading import load_config, read_yaml, validate
from cluster.configuration.preflight import preflight
from cluster.core.config import RunConfig, Section
from cluster.core.problem import Problem
from cluster.run_state.run_directory import differences
from learner.objective.objectives import resolve

Name = Annotated[str, Field(max_length=40, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Seed = Annotated[int, Field(ge=0, strict=True)]

OURS = ("seed", "name", "directory")
"""Settings that the comparison gives to each run itself."""
WHAT_IS_MEASURED = ("task.", "evaluation.", "reward.truncated_is_incorrect")
"""Runs that differ in these are not asked the same questions, or not judged alike."""
NO_MATTER = ("directory", "name", "cluster.", "tracking.", "checkpoint.")
"""Settings that may change between the parts of a comparison: no result depends on them."""


class ComparisonConfig(Section):
    """One comparison. `configs/compare_objectives.yaml` is an example."""

    name: Name = "comparison"
    """Names its folder, its runs and their group in W&B."""
    directory: Path = Path("runs")
    """Its folder is made in here; the runs' directories are in that."""
    base: Path = Path("demo.yaml")
    """The configuration that all runs start from. Relative to the comparison's own file."""
    overrides: tuple[str, ...] = ()
    """Settings for all runs, as on the command line: `steps=100`."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    """Each variant is trained once with each. A seed decides which prompts come when, and what is sampled."""
    variants: Mapping[Name, tuple[str, ...]] = Field(default_factory=dict)
    """What is compared: a name, and the settings that make the difference."""
    baseline: str | None = None
    """The variant from which the others' differences are taken; null is the first one."""


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a comparison, and how to start it by hand."""

    variant: str
    seed: int
    config: RunConfig
    arguments: tuple[str, ...]
    """Of `launch.py train`."""

    @property
    def name(self) -> str:
        return self.config.name


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is to be compared. `runs` are seed by seed, so that early results already say something."""

    name: str
    directory: Path
    """Absolute. Tables, plots and logs are in it, and the run directories."""
    variants: tuple[str, ...]
    baseline: str
    seeds: tuple[int, ...]
    runs: tuple[PlannedRun, ...]

    @property
    def others(self) -> tuple[str, ...]:
        """All variants but the baseline."""
        return tuple(variant for variant in self.variants if variant != self.baseline)

    def of_variant(self, variant: str) -> list[PlannedRun]:
        return [run for run in self.runs if run.variant == variant]


def load_comparison(
    path: Path, overrides: Sequence[str] = (), address: str | None = None
) -> tuple[Comparison, list[Problem]]:
    """Read the file. `overrides` are for all runs, on top of the file's. It may be used if there are no problems."""
    values, problems = read_yaml(path)
    config, schema_problems = validate(ComparisonConfig, values)
    problems += schema_problems
    if values:
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
    """What an earlier run of this name was told otherwise, of that which results depend on."""
    return [line for line in differences(saved, planned) if not line.startswith(NO_MATTER)]


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
    problems = list(loaded.problems)
    if (
        loaded.readable and seed == comparison.seeds[0]
    ):  # the others differ from it in nothing that can be wrong
        problems += preflight(loaded.config)
    return PlannedRun(variant, seed, loaded.config, (str(base), *arguments)), problems


def _check(config: ComparisonConfig, overrides: Sequence[str]) -> Iterator[Problem]:
    """What is wrong with the comparison as such."""
    if len(config.variants) < 2:
        yield Problem(
            "variants",
            f"{len(config.variants)} will not do",
            "name two or more, each with its list of settings",
        )
    if config.baseline is not None and config.baseline not in config.variants:
        yield Problem(
            "baseline", f"there is no variant {config.baseline}", f"take one of {', '.join(config.variants)}"
        )
    if len(set(config.seeds)) < len(config.seeds):
        yield Problem(
            "seeds", "one is there twice", "give each once: a run with the same seed says nothing new"
        )
    for where, settings in [("overrides", config.overrides), ("the command line", overrides)]:
        for key in _keys(settings):
            if key in OURS:
                yield Problem(
                    f"{where}: {key}",
                    "each run has its own",
                    "use seeds, name and directory of the file",
                )
    varied = {key for settings in config.variants.values() for key in _keys(settings)}
    for key in sorted(varied & set(_keys(overrides))):
        yield Problem(
            key,
            "the variants differ in it",
            "leave it out of the command line",
        )
    for variant, settings in config.variants.items():
        for key in _keys(settings):
            if key in OURS:
                yield Problem(f"variant {variant}: {key}", "each run has its own", "leave it out")
            elif key.startswith(WHAT_IS_MEASURED):
                yield Problem(
                    f"variant {variant}: {key}",
                    "its results would be those of other questions, or of other judges",
                    "set it in overrides, for all runs alike",
                )


def _check_runs(comparison: Comparison) -> Iterator[Problem]:
    """What is wrong between the runs. Seeds differ only in their seed: the first tells all."""
    first = [run for run in comparison.runs if run.seed == comparison.seeds[0]]
    for one, other in itertools.combinations(first, 2):
        if not settings_changed(one.config, other.config):
            yield Problem(
                f"variant {other.variant}", f"it has the settings of {one.variant}", "take one of them out"
            )


def _keys(settings: Sequence[str]) -> list[str]:
    return [setting.partition("=")[0] for setting in settings]


def same_gradient(comparison: Comparison) -> list[str]:
    """Variants whose gradients are the same at every step, by theory: their differences measure nothing but noise.

    At ratio 1 (on-policy, one optimizer step per batch) GRPO, GSPO and SAPO have the same one (docs/objectives.md).
    """
    alike = [
        run.variant
        for run in comparison.runs
        if run.seed == comparison.seeds[0]
        and resolve(run.config.objective).is_grpo_on_policy
        and run.config.rollout.max_staleness == 0
        and run.config.optimizer_steps_per_batch == 1
    ]
    return alike if len(alike) > 1 else []
