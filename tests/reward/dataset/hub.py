"""A hub whose data sets are directories of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest


def serve_as_hub(monkeypatch: pytest.MonkeyPatch, data_sets: Mapping[str, Path]) -> None:
    """Let `datasets` find the files of each data set in a directory. Everything else is as with the hub itself."""
    found = datasets.load_dataset_builder

    def load_dataset_builder(path: str, subset: str | None) -> Any:
        return found(str(data_sets.get(path, path)), subset)

    monkeypatch.setattr("datasets.load_dataset_builder", load_dataset_builder)
