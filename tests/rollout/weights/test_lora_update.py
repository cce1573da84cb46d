"""Low-rank updates are added to the weights that they name, and to no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rollout.weights.lora_update import is_low_rank, updated_weights

CPU = torch.device("cpu")
WEIGHTS = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "b.weight": torch.ones(3, 3, dtype=torch.bfloat16),
    "b.bias": torch.ones(3),
}
UPDATE = {"a.weight.left": torch.ones(2, 1), "a.weight.right": torch.tensor([[1.0, 2.0, 3.0]])}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Write a checkpoint of two files."""
    for number, names in enumerate([["a.weight"], ["b.weight", "b.bias"]]):
        save_file({name: WEIGHTS[name] for name in names}, tmp_path / f"model-{number}.safetensors")
    return tmp_path


def test_all_weights_are_yielded_and_the_named_one_is_changed(directory: Path) -> None:
    found = dict(updated_weights(directory, UPDATE, CPU))
    assert found.keys() == WEIGHTS.keys()
    torch.testing.assert_close(found["a.weight"], WEIGHTS["a.weight"] + torch.tensor([1.0, 2.0, 3.0]))
    for name in ("b.weight", "b.bias"):
        torch.testing.assert_close(found[name], WEIGHTS[name], rtol=0, atol=0)


def test_a_sum_in_bfloat16_is_not_rounded(directory: Path) -> None:
    update = {"b.weight.left": torch.full((3, 1), 1e-3), "b.weight.right": torch.ones(1, 3)}
    found = dict(updated_weights(directory, update, CPU))["b.weight"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full((3, 3), 1.001))


def test_the_product_is_computed_on_the_device_of_the_engine(directory: Path) -> None:
    """On a CPU with one thread it takes minutes for a large model, while the engine is paused."""
    device = torch.device("meta")
    found = dict(updated_weights(directory, UPDATE, device))
    assert found["a.weight"].device == device
    assert found["b.weight"].device == CPU, "a weight without an update is loaded from the host"


def test_the_files_are_not_changed(directory: Path) -> None:
    first = dict(updated_weights(directory, UPDATE, CPU))
    second = dict(updated_weights(directory, UPDATE, CPU))
    torch.testing.assert_close(first["a.weight"], second["a.weight"], rtol=0, atol=0)


def test_an_update_of_a_missing_weight_is_refused(directory: Path) -> None:
    update = {name.replace("a.", "model.a."): tensor for name, tensor in UPDATE.items()}
    with pytest.raises(
        ValueError, match=r"does not contain the weights that the update changes: model\.a\.weight"
    ):
        dict(updated_weights(directory, update, CPU))


def test_updates_are_distinguished_from_whole_weights() -> None:
    assert is_low_rank(UPDATE)
    assert not is_low_rank(WEIGHTS)
