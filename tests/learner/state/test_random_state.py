"""Random number generators go on where they were, from a file that can hold nothing but numbers."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.state.random_state import load_random_state, save_random_state


def drawn() -> tuple[float, list[float], list[float]]:
    return random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()


def test_what_is_drawn_is_what_would_have_been_drawn(tmp_path: Path) -> None:
    save_random_state(tmp_path / "state")
    expected = drawn()
    drawn()
    load_random_state(tmp_path / "state")
    assert drawn() == expected


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harm",)


def test_code_in_the_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"python": Harmful()}, "state")
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        load_random_state(Path("state"))
    assert not Path("harm").exists()
