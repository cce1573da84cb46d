"""The preparation of a model in the cluster: an unusable model is refused in one line, without the stack of a remote
process, and the token for the hub is stored nowhere."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import gguf
import pytest
import ray

from cluster.core.config import RunConfig
from cluster.runtime.connect import connect
from cluster.tracking import RunConsole
from cluster.training.session import RUN_ERRORS, UnusableModelError, prepare_in_cluster
from tests.integration.hub import hub

REPOSITORY = "organization/private"
CONFIG = b'{"model_type": "llama"}'


def test_a_gguf_file_of_an_unknown_architecture_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(str(file), "nonsense")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = {"source": str(file), "cache_directory": str(tmp_path / "cache")}
    config = RunConfig.model_validate({"model": model})
    connect(config.cluster)
    try:
        with (
            RunConsole("test", steps=1, quiet=True) as console,
            pytest.raises(UnusableModelError, match=r"model\.source: .*nonsense is not supported") as error,
        ):
            prepare_in_cluster(config, console)
    finally:
        ray.shutdown()
    assert "\n" not in str(error.value)
    assert UnusableModelError in RUN_ERRORS


def test_a_private_model_is_fetched_with_the_drivers_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray starts before the driver receives its token, as in a job. The fetching process sends it to the hub only."""
    token = "hf_planted3planted3"
    config = RunConfig.model_validate({"model": {"source": REPOSITORY}})
    with (
        hub(models={REPOSITORY: {"config.json": CONFIG}}, token=token) as address,
        tempfile.TemporaryDirectory(prefix="k", dir="/tmp", ignore_cleanup_errors=True) as ray_files,
    ):
        for name, value in (
            ("HF_ENDPOINT", address),
            ("HF_HOME", str(tmp_path / "hub")),
            ("HF_HUB_OFFLINE", "0"),
            ("RAY_TMPDIR", ray_files),
        ):
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        connect(config.cluster)
        try:
            with RunConsole("test", steps=1, quiet=True) as console:
                with pytest.raises(UnusableModelError, match="the Hugging Face hub returned no model"):
                    prepare_in_cluster(config, console)
                monkeypatch.setenv("HF_TOKEN", token)
                directory = prepare_in_cluster(config, console)
            assert (directory / "config.json").read_bytes() == CONFIG
            store = ray.experimental.internal_kv.GcsClient(address=ray.get_runtime_context().gcs_address)
            kept = [
                store.internal_kv_get(name, namespace) or b""
                for namespace in (None, b"fun")  # the second one stores the functions of tasks
                for name in store.internal_kv_keys(b"", namespace)
            ]
            assert any(b"prepare" in value for value in kept), (
                "the store must contain the function of the task"
            )
            assert not any(token.encode() in value for value in kept)
            assert "HF_TOKEN" not in ray.get(ray.remote(num_cpus=1)(lambda: dict(os.environ)).remote())
        finally:
            ray.shutdown()
        files = [
            file for folder in (tmp_path, Path(ray_files)) for file in folder.rglob("*") if file.is_file()
        ]
        assert any("raylet" in file.name for file in files), "the files must include Ray's logs"
        assert [file for file in files if token.encode() in file.read_bytes()] == []
