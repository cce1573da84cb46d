"""The engine's source of pulled weights: it yields what was published, and its file is not overwritten meanwhile."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.weights.pull import HostCopy, file_parts
from rollout.weights.node_files import NodeWeightFiles
from rollout.weights.pinned_staging import PinnedStaging
from rollout.weights.pull import FileSource, OverwrittenError

CPU = torch.device("cpu")


def weights(version: int) -> dict[str, torch.Tensor]:
    return {
        "embedding": torch.full((5, 3), float(version)),
        "norm": torch.full((7,), version, dtype=torch.bfloat16),
        "scale": torch.tensor(float(version)),
        "empty": torch.zeros(0, 3),
    }


def published(version: int) -> list[np.ndarray]:
    return file_parts(weights(version), version, HostCopy())


@pytest.fixture
def files(tmp_path: Path) -> Iterator[NodeWeightFiles]:
    opened = NodeWeightFiles("run", tmp_path)
    yield opened
    opened.close()


def read(path: Path, version: int) -> dict[str, torch.Tensor]:
    return dict(FileSource(CPU, 0).tensors((str(path), version), ()))


def test_the_engine_reads_what_was_published(files: NodeWeightFiles) -> None:
    with files.held(1, published(1)) as path:
        found = read(path, 1)
        assert found.keys() == weights(1).keys()
        for name, weight in weights(1).items():
            assert found[name].dtype == weight.dtype
            assert torch.equal(found[name], weight)


def test_a_file_is_not_written_again_while_an_engine_has_a_tensor_of_it(files: NodeWeightFiles) -> None:
    """The worker has let go of the file, but the model may have kept a tensor without a copy."""
    with files.held(1, published(1)) as path:
        kept = read(path, 1)["embedding"]
        first = path.stat().st_ino
    with files.held(2, published(2)) as path:
        assert path.stat().st_ino != first
        assert torch.equal(kept, weights(1)["embedding"])
        second = path.stat().st_ino
    del kept
    gc.collect()
    with files.held(3, published(3)) as path:
        assert path.stat().st_ino in (first, second), "now nothing holds them"


def test_a_file_with_another_version_is_refused(files: NodeWeightFiles) -> None:
    with (
        files.held(1, published(1)) as path,
        pytest.raises(OverwrittenError, match="version 2 contains version 1"),
    ):
        read(path, 2)


def test_a_file_that_is_overwritten_during_a_load_is_noticed(files: NodeWeightFiles) -> None:
    """Locks prevent it. This is the case in which they do not work."""
    with ExitStack() as stack:
        path = stack.enter_context(files.held(1, published(1)))
        loading = FileSource(CPU, 0).tensors((str(path), 1), ())
        next(loading)
        files._written.write(path, published(2))
        with pytest.raises(OverwrittenError, match="version 1 contains version 2"):
            list(loading)


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_tensors_pass_through_the_staging_buffers_unchanged(size: int) -> None:
    """Without pinning and without streams, which need a GPU."""
    staging = PinnedStaging(CPU, size, pin=False)
    for tensor in weights(3).values():
        copy = staging.to_device(tensor)
        assert torch.equal(copy, tensor)
        assert copy.dtype == tensor.dtype
        assert not len(tensor.view(-1)) or copy.data_ptr() != tensor.data_ptr()
