"""The run directory: the paths of everything that a run leaves on disk.

Other modules ask this module for a path and never join one themselves. Torch-free and Ray-free.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cluster.core.addresses import parse_address
from cluster.core.config import RunConfig
from cluster.core.errors import RefusedError
from cluster.core.files import refuse_obstacles, write_atomically
from cluster.core.reading import FIX, read_mapping, read_object, read_text, shown_path
from cluster.core.renamed import current_settings
from cluster.core.text import json_text
from cluster.run_state.run_entries import DIRECTORIES, FILES, GROWING_FILES

README = """\
# {name}

One training run, with these entries:

| entry | content |
|---|---|
| `config.yaml` | the resolved configuration: `launch.py train config.yaml` resumes an unfinished run |
| `metrics.jsonl` | the complete record: one JSON object per step; step k is the state after k updates |
| `code_version` | the version of the code with which the run was last started |
| `metrics.superseded.jsonl` | the rows of steps that were repeated after a resumption (if there were any) |
| `transcripts/` | sampled responses with their verdicts, one file per step: `.md` to read, `.jsonl` for programs |
| `failed_batches/` | the batches whose update was not finite, with all tokens (if there were any) |
| `evaluations/` | for each evaluation: its report (`.json`), all responses (`.jsonl`), and a page to read (`.html`) |
| `ray_address` | the address of the Ray cluster in which the run was last started; `launch.py scale` reads it |
| `logs/` | one log file per actor; look here if an actor has died |
| `export/` | the logs of `launch.py export` |
| `checkpoints/` | the checkpoints for resuming; old ones are deleted; `launch.py export` exports the model of one |
| `final_model/` | the trained model as a Hugging Face directory, written at the end of the run |
| `wandb/` | W&B's own files; `wandb sync wandb/offline-run-*` uploads a run that was offline |
| `summary.json` | the results; it is written last and marks the run as finished |

Read the metrics with `pandas.read_json("metrics.jsonl", lines=True)`.

A newer version may have renamed settings of `config.yaml`. Then `launch.py train` reports the new name of each.
"""

ABSENT = "(absent)"
"""The value that is shown for an option that a configuration lacks."""
_WANDB_ID = re.compile(r"[^\s\x00-\x20\x7f/\\#?%:]{1,128}")
"""The ids that W&B accepts."""


class _Dumper(yaml.SafeDumper):
    """A YAML dumper that quotes strings like "1e5", which OmegaConf reads as numbers and PyYAML does not."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Names, reads and writes the files of the run as a whole.

        run = RunDirectory(config.run_directory)
        run.create()
        run.write_config(config)

    A property only names a path; the entry need not exist.
    """

    path: Path

    @staticmethod
    def existing(path: Path) -> RunDirectory:
        """Return the directory of an existing run that the user has named.

        Raises:
            RefusedError: if there is no run at `path`.
        """
        try:
            run = RunDirectory(path.expanduser().absolute())
            is_run = run.config_file.is_symlink() or run.config_file.exists()
        except (OSError, RuntimeError, ValueError) as error:  # no such user's home, a null character
            raise RefusedError(f"{shown_path(path)}: this is not a run directory ({error})") from error
        if not is_run:
            raise RefusedError(
                f"{shown_path(path)}: this is not a run directory (it has no {run.config_file.name}); name one, such "
                "as runs/demo"
            )
        return run

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
    def failed_batches(self) -> Path:
        return self.path / "failed_batches"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def final_model(self) -> Path:
        """The directory of the trained model. It exists only after the model was saved."""
        return self.path / "final_model"

    @property
    def evaluation(self) -> RunDirectory:
        """The directory beside it for `launch.py eval`, which writes `logs/` and `evaluation.*`."""
        return RunDirectory(self.path.with_name(f"{self.path.name}.eval"))

    @property
    def plan(self) -> RunDirectory:
        """The directory beside it for `launch.py plan`, which writes `logs/`, `evaluation.*` and `plan.*`."""
        return RunDirectory(self.path.with_name(f"{self.path.name}.plan"))

    @property
    def export(self) -> RunDirectory:
        """The directory in it for the `logs/` of `launch.py export`, which stay apart from those of a live run."""
        return RunDirectory(self.path / "export")

    @property
    def console_log(self) -> Path:
        """The file that continues the output of the command if its console is lost."""
        return self.logs / "console.log"

    @property
    def wandb(self) -> Path:
        return self.path / "wandb"

    @property
    def wandb_run_id_file(self) -> Path:
        return self.wandb / "run_id"

    def log_file(self, actor: str) -> Path:
        """Return the log file of an actor, such as `logs/rollout-0.log`."""
        return self.logs / f"{actor}.log"

    def transcript_file(self, step: int) -> Path:
        """Return the Markdown transcript of a step. The same responses as JSON Lines are beside it."""
        return self.transcripts / f"step_{step:06d}.md"

    def failed_batch_file(self, step: int) -> Path:
        """Return the file of a batch whose update failed in `step`. Batches of several attempts have files of their
        own."""
        attempt = len(self.failed_batch_files) + 1
        return self.failed_batches / f"step_{step:06d}-{attempt}.jsonl"

    @property
    def failed_batch_files(self) -> list[Path]:
        """The files of all batches whose update failed."""
        return sorted(self.failed_batches.glob("*.jsonl"))

    @property
    def plan_file(self) -> Path:
        """The numbers of `launch.py plan`, as JSON."""
        return self.path / "plan.json"

    @property
    def plan_page(self) -> Path:
        """The page of `launch.py plan`, unless the user names another file."""
        return self.path / "plan.html"

    def evaluation_stem(self, step: int | None = None) -> Path:
        """Return the path of an evaluation's files without their suffixes: of the run's evaluation at `step`, or of
        `launch.py eval` or `plan`."""
        return self.path / "evaluation" if step is None else self.evaluations / f"step_{step:06d}"

    def create(self) -> None:
        """Make the directory and its subdirectories. Existing entries stay.

        Raises:
            OSError: if it cannot be made.
        """
        for directory in (self.path, self.logs, self.transcripts, self.checkpoints, self.wandb):
            directory.mkdir(parents=True, exist_ok=True)
        write_atomically(self.readme_file, README.format(name=self.path.name), durable=True)

    def refuse_obstacles(self, remedy: str = "move it away, or choose another name=NAME") -> None:
        """Refuse if a pipe, a link that leads nowhere or the like is in the place of anything that a command writes.

        Raises:
            RefusedError: if so. The message names it and ends with `remedy`.
        """
        refuse_obstacles(self.path, DIRECTORIES, FILES, GROWING_FILES, remedy)

    def write_config(self, config: RunConfig) -> None:
        """Write the resolved configuration as YAML, with paths as strings."""
        # Not with `allow_unicode`: PyYAML would write U+0085 in a form that it reads back as a space.
        text = yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)
        write_atomically(self.config_file, text, durable=True)

    def read_config(self) -> RunConfig:
        """Read the configuration with which the run was last started. Settings that an earlier version wrote are
        translated to their present names.

        Raises:
            FileNotFoundError: if the directory has no configuration.
            RefusedError: if the file cannot be read, or the configuration is not valid.
        """
        values = read_mapping(self.config_file)
        if not values:
            raise RefusedError(f"{shown_path(self.config_file)}: the file has no settings; {FIX}")
        try:
            return RunConfig.model_validate(current_settings(values))
        except ValidationError as error:
            raise RefusedError(
                f"{shown_path(self.config_file)}: this is not the configuration of a run ({_mistakes(error)}); {FIX}"
            ) from error

    def write_code_version(self, code_version: str) -> None:
        """Write the version of the code with which the run is started."""
        write_atomically(self.code_version_file, f"{code_version}\n", durable=True)

    def read_code_version(self) -> str:
        """Read the version of the code with which the run was last started; empty if the run has not recorded it."""
        try:
            return read_text(self.code_version_file).strip()
        except FileNotFoundError:
            return ""

    def write_ray_address(self, address: str) -> None:
        """Write the address of the Ray cluster in which the run is started."""
        write_atomically(self.ray_address_file, f"{address}\n")

    def read_ray_address(self) -> str | None:
        """Read the address of the Ray cluster in which the run was last started; None if it has not recorded it.

        Raises:
            RefusedError: if the file has no address.
        """
        try:
            address = read_text(self.ray_address_file).strip()
        except FileNotFoundError:
            return None
        parse_address(address, shown_path(self.ray_address_file))
        return address

    def write_wandb_run_id(self, run_id: str) -> None:
        """Write the id of the W&B run in which the run is shown."""
        self.wandb.mkdir(parents=True, exist_ok=True)
        write_atomically(self.wandb_run_id_file, f"{run_id}\n")

    def read_wandb_run_id(self) -> str | None:
        """Read the id of the W&B run in which the run is shown; None if it has not recorded it.

        Raises:
            RefusedError: if the file cannot be read, or has something else than an id.
        """
        try:
            run_id = read_text(self.wandb_run_id_file).strip()
        except FileNotFoundError:
            return None
        if run_id and not _WANDB_ID.fullmatch(run_id):
            raise RefusedError(
                f"{shown_path(self.wandb_run_id_file)}: this is not the id of a W&B run; restore it from a copy, or "
                "delete it, so that W&B shows the run as a new one"
            )
        return run_id or None

    def differences(self, config: RunConfig) -> list[str]:
        """Return the changes from the saved configuration to `config`: `learner.learning_rate: 0.0002 -> 0.0003`.

        Raises:
            FileNotFoundError, RefusedError: as in `read_config`.
        """
        return differences(self.read_config(), config)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the results atomically, which marks the run as finished. Values are written as by `json_text`."""
        write_atomically(self.summary_file, json_text(summary, indent=2) + "\n", durable=True)

    def read_summary(self) -> dict[str, Any]:
        """Read the results of a finished run.

        Raises:
            FileNotFoundError: if the run is not finished.
            RefusedError: if the file cannot be read.
        """
        return read_object(self.summary_file)

    def remove_summary(self) -> None:
        """Mark the run as unfinished, because a finished run continues with more steps."""
        self.summary_file.unlink(missing_ok=True)

    @property
    def is_finished(self) -> bool:
        return self.summary_file.exists()


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """Return a line `section.field: old -> new` per difference, in the order of the schema, with new options last."""
    before, after = flat_settings(old), flat_settings(new)
    return [
        f"{key}: {before.get(key, ABSENT)} -> {after.get(key, ABSENT)}"
        for key in before | after
        if before.get(key) != after.get(key)
    ]


def _mistakes(error: ValidationError) -> str:
    """Return the first mistakes of a configuration. Values are not quoted: they may be secrets."""
    found = error.errors(include_url=False, include_input=False)
    shown = [f"{'.'.join(map(str, detail['loc'])) or 'it'}: {detail['msg']}" for detail in found[:3]]
    return "; ".join([*shown, *([f"and {len(found) - 3} more"] if len(found) > 3 else [])])


def flat_settings(config: RunConfig) -> dict[str, str]:
    """Return the value of each `section.field` as text, in the order of the schema."""
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
