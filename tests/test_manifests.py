"""The manifests of docs/cluster.md use commands, settings and versions of this project."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.configuration.chosen_defaults import with_device_defaults
from cluster.configuration.gpu_checks import check_gpus
from cluster.configuration.loading import load_config
from cluster.configuration.memory import GIB, shared_memory
from cluster.configuration.model_shape import ModelShape
from cluster.core.config import RunConfig
from cluster.runtime.capacity import Node, has_labels, needs_of, shortfalls
from tests import PROJECT
from tests.shapes import CONFIGS

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


def run_of_the_rayjob() -> RunConfig:
    _, _, _, config_file, *overrides = shlex.split(RAYJOB["spec"]["entrypoint"])
    return load_config(PROJECT / config_file, overrides).config


def test_the_run_of_the_rayjob_fits_its_pods() -> None:
    """Each pod is a node of the cluster."""
    nodes = [
        Node(
            f"{group['groupName']}-{index}",
            {"CPU": float(requests["cpu"]), "GPU": float(requests.get("nvidia.com/gpu", 0))},
            dict([group["rayStartParams"]["labels"].split("=")]),
        )
        for group in CLUSTER["workerGroupSpecs"]
        for requests in [group["template"]["spec"]["containers"][0]["resources"]["requests"]]
        for index in range(group["replicas"])
    ]
    config = run_of_the_rayjob()
    assert [str(problem) for problem in shortfalls(needs_of(config), nodes)] == []
    assert list(check_gpus(config)) == []
    shape = ModelShape.from_config(CONFIGS[config.model.source.removeprefix("Qwen/")])
    on_gpus, _ = with_device_defaults(config, shape, None)
    assert shared_memory(on_gpus, shape).total < 16 * GIB, "the size of /dev/shm in the manifest"


def test_the_rayjob_names_the_image_of_the_dockerfile() -> None:
    image = CLUSTER["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    tag = re.findall(r"-t (\S+)", (PROJECT / "docker" / "gpu.Dockerfile").read_text())
    assert [image.rpartition("/")[2]] == tag


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_an_image_is_built_from_the_lock_of_its_platform(platform: str) -> None:
    """The files of the repository that its steps use exist, and it has a Python that the project supports. The image
    itself is not built here."""
    text = (PROJECT / "docker" / f"{platform}.Dockerfile").read_text()
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    runs = [shlex.split(rest) for instruction, rest in steps if instruction == "RUN"]
    assert ["requirements/install.sh", ".venv", platform] in runs
    assert os.access(PROJECT / "requirements" / "install.sh", os.X_OK)
    assert (PROJECT / "requirements" / f"{platform}.txt").is_file()
    base = next(rest for instruction, rest in steps if instruction == "FROM")
    assert re.fullmatch(r"python:3\.1[12]-slim-\w+", base)
    ignored = (PROJECT / ".dockerignore").read_text().split()
    assert not {"requirements", "configs", "launch.py", "pyproject.toml"} & set(ignored)


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
