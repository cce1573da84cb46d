"""A model that cannot be used ends a command with one line, not with the stack of a process elsewhere."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import ray

from cluster.config import RunConfig
from cluster.placement import connect
from cluster.stage import RUN_ERRORS, UnusableModelError, prepare_in_cluster
from cluster.tracking import RunConsole


def test_a_gguf_file_of_an_unknown_architecture(tmp_path: Path) -> None:
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
