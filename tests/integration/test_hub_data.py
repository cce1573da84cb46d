"""Data sets of a hub, over HTTP: they have the rows of the same files on this machine, with the hub and later without.

Each read runs in a process of its own, because the client of the hub reads its environment when it is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from reward.dataset.reading import read_splits
from tests import PROJECT
from tests.integration.hub import Files, hub

ROWS = [{"prompt": "007", "answer": "2020-01-02"}, {"prompt": "a, \u2028 b", "answer": "1.50"}]
TYPED = [{"prompt": "p", "answer": [1, 2.5, 10.0]}, {"prompt": "q", "answer": None}]
READ = """
import json, sys
from reward.dataset.reading import read_splits
from reward.dataset.values import DataError
for name in sys.argv[1:]:
    try:
        print(json.dumps({split: [row for _, row in rows] for split, rows in read_splits(name).items()}))
    except DataError as error:
        print(json.dumps(str(error)))
"""


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


CARD = b"""---
configs:
- config_name: default
  data_files:
  - {split: train, path: parts/*.jsonl}
---
"""
DATA_SETS: Mapping[str, Files] = {
    "some/lines": {"README.md": b"---\n---\n", "train.jsonl": jsonl(ROWS), "test.jsonl": jsonl(TYPED)},
    "some/shards": {
        "data/train-00000-of-00002.parquet": parquet(ROWS),
        "data/train-00001-of-00002.parquet": parquet(ROWS[:1]),
        "data/test-00000-of-00001.parquet": parquet(ROWS[1:]),
    },
    "some/table": {"train/a.csv": b"prompt,answer\n007,2020-01-02\n", "test/a.csv": b"prompt,answer\n1,2\n"},
    "some/card": {"README.md": CARD, "parts/a.jsonl": jsonl(TYPED), "old/b.jsonl": jsonl(ROWS)},
}


def read(address: str, home: Path, *names: str, **variables: str) -> dict[str, Any]:
    """Return the splits of each data set as a new process reads them, or the line of the refusal."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(home), **variables}
    command = [sys.executable, "-c", READ, *names]
    process = subprocess.run(
        command, env=environment, cwd=PROJECT, capture_output=True, text=True, timeout=200
    )
    assert process.returncode == 0, process.stderr
    return dict(zip(names, map(json.loads, process.stdout.splitlines()), strict=True))


def on_this_machine(directory: Path) -> dict[str, Any]:
    """Write the files of the data sets, and return their splits as they are read from there."""
    found = {}
    for name, files in DATA_SETS.items():
        for path, content in files.items():
            (file := directory / name / path).parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        splits = read_splits(str(directory / name))
        found[name] = {split: [row for _, row in rows] for split, rows in splits.items()}
    return found


@pytest.mark.parametrize(
    ("names", "later"),
    [
        pytest.param([*DATA_SETS, "some/other"], {"HF_HUB_OFFLINE": "1"}, id="offline"),
        pytest.param(["some/card"], {}, marks=pytest.mark.slow, id="unreachable"),
    ],
)
def test_the_hub_has_the_rows_of_the_files_and_is_not_needed_afterwards(
    tmp_path: Path, names: list[str], later: dict[str, str]
) -> None:
    """The client tries for 25 s to reach a hub that does not answer, so this is tried with one data set."""
    expected = on_this_machine(tmp_path / "files")
    assert expected["some/lines"] == {"train": ROWS, "test": TYPED}
    with hub(data_sets=DATA_SETS) as address:
        assert read(address, tmp_path / "home", *DATA_SETS) == expected
    for name, found in read(address, tmp_path / "home", *names, **later).items():
        if name in expected:
            assert found == expected[name]
        else:
            assert found.startswith(f"the data set {name} cannot be read (")


def test_private_data_are_read_with_the_token_alone(tmp_path: Path) -> None:
    with hub(data_sets=DATA_SETS, token="hf_planted4planted4") as address:
        refusal = read(address, tmp_path / "home", "some/lines")["some/lines"]
        assert refusal.startswith("the data set some/lines cannot be read (")
        assert refusal.endswith("log in with `hf auth login`")
        found = read(address, tmp_path / "home", "some/lines", HF_TOKEN="hf_planted4planted4")
    assert found == {"some/lines": {"train": ROWS, "test": TYPED}}
