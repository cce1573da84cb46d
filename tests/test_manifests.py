"""The manifests of docs/cluster.md use commands, settings and versions of this project."""

from __future__ import annotations

import os
import shlex
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.configuration.loading import load_config
from cluster.runtime.capacity import Node, has_labels
from tests import PROJECT

RAYJOB = yaml.safe_load((PROJECT / "docs/kuberay/rayjob.yaml").read_text())
CLUSTER = RAYJOB["spec"]["rayClusterSpec"]


def test_the_run_of_the_rayjob_is_valid_and_matches_its_nodes() -> None:
    python, launch, command, config_file, *overrides = shlex.split(RAYJOB["spec"]["entrypoint"])
    assert (python, launch, command) == ("python", "launch.py", "train")
    loaded = load_config(PROJECT / config_file, overrides)
    assert loaded.problems == ()
    nodes = [
        Node(group["groupName"], {}, dict([group["rayStartParams"]["labels"].split("=")]))
        for group in CLUSTER["workerGroupSpecs"]
    ]
    for kind, labels in loaded.config.cluster.node_labels.items():
        assert [node.name for node in nodes if has_labels(node, labels)] == [kind]


def test_the_rayjob_has_the_required_ray_version_and_requires_a_token() -> None:
    assert CLUSTER["rayVersion"] == version("ray")
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert "WANDB_API_KEY" not in RAYJOB["spec"]["runtimeEnvYAML"], "Ray would store it"


def strict(schema: Any) -> Any:
    """Return the schema without unknown fields. Kubernetes ignores them silently; here they are errors."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(part) for key, part in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        closed.pop("type", None)
    is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and not is_open:
        closed["additionalProperties"] = False
    return closed


@pytest.mark.skipif(
    "KUBERAY_CRD" not in os.environ, reason="KUBERAY_CRD=ray.io_rayjobs.yaml names KubeRay's schema"
)
def test_the_rayjob_fits_kuberays_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    definition = yaml.safe_load(Path(os.environ["KUBERAY_CRD"]).read_text())
    (newest,) = [one for one in definition["spec"]["versions"] if one["name"] == "v1"]
    schema = strict(newest["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {}  # Kubernetes' own
    errors = jsonschema.Draft202012Validator(schema).iter_errors(RAYJOB)
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


def test_the_slurm_script_is_bash() -> None:
    subprocess.run(["bash", "-n", PROJECT / "docs/slurm/train.sbatch"], check=True)
