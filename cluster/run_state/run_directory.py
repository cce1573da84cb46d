"""The run directory: the one place which knows what a run leaves on disk, and where.

Torch-free and Ray-free. Everything else asks this module for a path and never joins one itself.
"""

from __future__ import annotations

import json
import math
import numbers
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.core.config import RunConfig
from cluster.core.files import write_atomically
from cluster.core.renamed import current_settings

README = """\
# {name}

One training run. What lies here:

| entry | what it is |
|---|---|
| `config.yaml` | the resolved configuration: `launch.py train config.yaml` goes on with an unfinished run |
| `metrics.jsonl` | one JSON object per step, the truth about the run; step k is after k updates |
| `code_version` | of the code that it was last started with |
| `metrics.superseded.jsonl` | steps that were done again after a resume (only if there were any) |
| `transcripts/` | sampled responses with their verdicts, one file per step: `.md` to read, `.jsonl` for programs |
| `evaluations/` | of each evaluation: its numbers (`.json`), all responses (`.jsonl`), and a page to read (`.html`) |
| `ray_address` | of the Ray cluster it ran in last; `launch.py scale` reads it |
| `logs/` | one log file per actor; look here when an actor died |
| `checkpoints/` | what a crashed run resumes from; old ones are deleted; `launch.py export` makes a model of one |
| `final_model/` | the trained model as a Hugging Face directory (at the end of the run) |
| `wandb/` | W&B's own files; `wandb sync wandb/offline-run-*` uploads a run that was offline |
| `summary.json` | the results; it is written last, so a run that has it is finished |

Read the metrics with `pandas.read_json("metrics.jsonl", lines=True)`.
"""


ABSENT = "(absent)"
"""In place of the value of an option that one configuration has and another has not."""


class _Dumper(yaml.SafeDumper):
    """Quotes strings like "1e5", which OmegaConf reads as numbers and PyYAML does not."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Names, reads and writes what belongs to the run as a whole.

        run = RunDirectory(config.run_directory)
        run.create()
        run.write_config(config)

    Entries need not exist: a property only says where one belongs.
    """

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def superseded_metrics_file(self) -> Path:
        return self.path / "metrics.superseded.jsonl"

    @property
    def summary_file(self) -> Path:
        return self.path / "summary.json"

    @property
    def ray_address_file(self) -> Path:
        return self.path / "ray_address"

    @property
    def code_version_file(self) -> Path:
        return self.path / "code_version"

    @property
    def readme_file(self) -> Path:
        return self.path / "README.md"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def transcripts(self) -> Path:
        return self.path / "transcripts"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def final_model(self) -> Path:
        """Made by whoever saves the model: while it is absent, there is no final model."""
        return self.path / "final_model"

    @property
    def evaluation(self) -> RunDirectory:
        """Beside it, for `launch.py eval`, which is no run: it leaves `logs/` and `evaluation.*`."""
        return RunDirectory(self.path.with_name(f"{self.path.name}.eval"))

    @property
    def wandb(self) -> Path:
        return self.path / "wandb"

    @property
    def wandb_run_id_file(self) -> Path:
        return self.wandb / "run_id"

    def log_file(self, actor: str) -> Path:
        """Of one actor, e.g. `logs/rollout-0.log`."""
        return self.logs / f"{actor}.log"

    def transcript_file(self, step: int) -> Path:
        """The Markdown; beside it is the same as JSON lines."""
        return self.transcripts / f"step_{step:06d}.md"

    def evaluation_stem(self, step: int | None = None) -> Path:
        """What the files of an evaluation are called, but for their endings: of one that the run did at `step`, or of
        `launch.py eval`."""
        return self.path / "evaluation" if step is None else self.evaluations / f"step_{step:06d}"

    def create(self) -> None:
        """Makes the directory and its parts; what is there already stays.

        Raises:
            OSError: it cannot be made.
        """
        for directory in (self.path, self.logs, self.transcripts, self.checkpoints, self.wandb):
            directory.mkdir(parents=True, exist_ok=True)
        write_atomically(self.readme_file, README.format(name=self.path.name), durable=True)

    def write_config(self, config: RunConfig) -> None:
        """Writes the resolved configuration as YAML, paths as strings."""
        # Without `allow_unicode`: with it, PyYAML writes U+0085 in a way that it reads back as a space.
        text = yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)
        write_atomically(self.config_file, text, durable=True)

    def read_config(self) -> RunConfig:
        """The configuration that the run was last started with.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the file is no longer a valid configuration (pydantic's ValidationError is one).
        """
        try:
            values = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
            return RunConfig.model_validate(
                current_settings(values) if isinstance(values, Mapping) else values
            )
        except yaml.YAMLError as error:
            raise ValueError(f"{self.config_file} is not YAML: {error}") from error

    def write_code_version(self, code_version: str) -> None:
        write_atomically(self.code_version_file, f"{code_version}\n", durable=True)

    def read_code_version(self) -> str:
        """Empty for a run of a time when it was not written down."""
        return (
            self.code_version_file.read_text(encoding="utf-8").strip()
            if self.code_version_file.exists()
            else ""
        )

    def differences(self, config: RunConfig) -> list[str]:
        """What `config` changes against the saved one: `learner.learning_rate: 0.0002 -> 0.0003`.

        Raises:
            FileNotFoundError, ValueError: as `read_config`.
        """
        return differences(self.read_config(), config)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes the results and so marks the run as finished. A crash leaves all of it or nothing.

        NaN and infinity become null, NumPy's scalars numbers, and what else JSON does not know a string.
        """
        write_atomically(
            self.summary_file, json.dumps(_jsonable(summary), indent=2, allow_nan=False) + "\n", durable=True
        )

    def read_summary(self) -> dict[str, Any]:
        """The results of a finished run.

        Raises:
            FileNotFoundError: the run is not finished.
        """
        summary: dict[str, Any] = json.loads(self.summary_file.read_text(encoding="utf-8"))
        return summary

    def remove_summary(self) -> None:
        """A finished run that goes on (with more steps) is not finished any more."""
        self.summary_file.unlink(missing_ok=True)

    @property
    def is_finished(self) -> bool:
        return self.summary_file.exists()


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """One line `section.field: old -> new` per difference, in the order of the schema; new options last."""
    before, after = flat_settings(old), flat_settings(new)
    return [
        f"{key}: {before.get(key, ABSENT)} -> {after.get(key, ABSENT)}"
        for key in before | after
        if before.get(key) != after.get(key)
    ]


def flat_settings(config: RunConfig) -> dict[str, str]:
    """`section.field` and its value in words, in the order of the schema."""
    flat = _flat(config.model_dump(mode="json"))
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in flat.items()}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return str(value)
