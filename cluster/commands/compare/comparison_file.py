"""The schema of a comparison's YAML file, and the checks of its values against each other.

Torch-free and Ray-free, like `cluster.configuration.loading`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from cluster.configuration.loading import validate
from cluster.configuration.messages import closest, setting_names
from cluster.core.config import RunConfig
from cluster.core.problem import Problem
from cluster.core.schema import Number, Section, Seed
from cluster.metrics.run_measures import HEADLINES

Name = Annotated[str, Field(max_length=40, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]

MANAGED = ("seed", "name", "directory")
"""The settings that the comparison sets for each run."""
MEASUREMENT = ("task.", "evaluation.", "reward.truncated_is_incorrect")
"""The settings that all runs must share: otherwise they answer different problems, or are scored differently."""
IRRELEVANT = ("directory", "name", "cluster.", "tracking.", "checkpoint.")
"""The settings that may change when a comparison is resumed: no result depends on them."""


class TuningConfig(Section):
    """The choice of a value of one setting for each variant, by runs that precede the comparison."""

    setting: str = "learner.learning_rate"
    """The setting whose value is chosen. It is a number, and no variant sets it."""
    values: tuple[Number, ...] = ()
    """The grid from which each variant gets its best value: two or more values."""
    seeds: tuple[Seed, ...] = ()
    """The seeds of the tuning: each variant is trained once with each value and each of these seeds. None of them may
    be a seed of the comparison, because a chosen value looks better than it is on the seeds by which it was chosen."""
    measure: str = "reward_area"
    """The measure that decides: the value with the largest mean over the seeds is chosen, the smaller one of two equal
    ones."""


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
    tuning: TuningConfig | None = None
    """The tuning that precedes the comparison, so that each variant has its best value of a setting. With null all
    variants are trained as they are."""


def value_text(value: float) -> str:
    """Return a value of the tuned setting as on the command line: settings that count refuse 4.0."""
    return str(int(value) if value.is_integer() else value)


def check(config: ComparisonConfig, overrides: Sequence[str]) -> Iterator[Problem]:
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


def check_tuning(
    config: ComparisonConfig, tuning: TuningConfig, overrides: Sequence[str]
) -> Iterator[Problem]:
    """Yield the mistakes of the tuning."""
    for name, count, least in (("values", len(tuning.values), 2), ("seeds", len(tuning.seeds), 1)):
        if count < least:
            words = {1: "one", 2: "two"}
            yield Problem(f"tuning.{name}", f"expected {words[least]} or more, got {count}", "list them")
    for name, listed in (("values", tuning.values), ("seeds", tuning.seeds)):
        if len(set(listed)) < len(listed):
            yield Problem(f"tuning.{name}", "an entry is repeated", "list each once")
    if shared := sorted(set(tuning.seeds) & set(config.seeds)):
        yield Problem(
            "tuning.seeds",
            f"the comparison has the same: {', '.join(map(str, shared))}",
            "choose others, because a value looks better than it is on the seeds by which it was chosen",
        )
    yield from _check_tuned_setting(config, tuning, overrides)
    measures = [measure.key for measure in HEADLINES]
    if tuning.measure not in measures:
        yield Problem(
            "tuning.measure", f"no such measure: {tuning.measure}", f"choose one of {', '.join(measures)}"
        )


def _check_tuned_setting(
    config: ComparisonConfig, tuning: TuningConfig, overrides: Sequence[str]
) -> Iterator[Problem]:
    """Yield the mistakes of the tuned setting and its values."""
    setting = tuning.setting
    known = list(setting_names(RunConfig))
    if setting in MANAGED or setting.startswith((*MEASUREMENT, *IRRELEVANT)):
        yield Problem(
            "tuning.setting",
            f"{setting} cannot be tuned, because it does not determine the training alone",
            "name a setting of the training, such as learner.learning_rate",
        )
        return
    if setting not in known:
        near = closest(setting, known)
        advice = f"did you mean {near}?" if near else "docs/configuration.md lists all settings"
        yield Problem("tuning.setting", f"there is no such setting: {setting}", advice)
        return
    variants = [(f"variant {variant}", settings) for variant, settings in config.variants.items()]
    for where, settings in [*variants, ("overrides", config.overrides), ("the command line", overrides)]:
        if setting in _keys(settings):
            yield Problem(f"{where}: {setting}", "the tuning sets it", "remove it, or tune another setting")
    for value in tuning.values:
        nested: Any = int(value) if value.is_integer() else value
        for part in reversed(setting.split(".")):
            nested = {part: nested}
        _, problems = validate(RunConfig, nested)
        yield from (
            Problem(f"tuning.values: {problem.where}", problem.what, problem.fix) for problem in problems
        )


def _keys(settings: Sequence[str]) -> list[str]:
    return [setting.partition("=")[0] for setting in settings]
