"""Read the rows of a data file, a directory or a hub data set, each with its location. Torch-free.

This is the wall between the libraries and the rest: whatever they raise leaves it as a DataError of one line.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

from reward.dataset.sources import UNDIVIDED, Splits, splits_of
from reward.dataset.values import DataError, Located, one_line

_KINDS = "name a file (.jsonl, .json, .csv, .tsv, .parquet), a directory with such files, or a hub id"
_LOGIN = "accept the terms of gated data on the hub and log in with `hf auth login`"


def read_rows(source: str, subset: str | None, split: str) -> list[Located]:
    """Return all rows of `source`: a data file, a directory, or a hub id.

    `subset` and `split` select part of a directory or a hub data set; a file has neither.

    Raises:
        DataError: if the source does not exist, cannot be read as it is, or is empty.
    """
    with _wall(source):
        rows = _selected(splits_of(source, subset), split, source)
    if not rows:
        raise DataError(f"{source} contains no rows")
    return rows


def read_splits(source: str) -> dict[str, list[Located]]:
    """Return the rows of all splits of `source` by the names of the splits; a file has one without a name.

    Raises:
        DataError: if the source does not exist, cannot be read as it is, or is empty.
    """
    with _wall(source):
        found = {name: read() for name, read in splits_of(source, None).items()}
    if not any(found.values()):
        raise DataError(f"{source} contains no rows")
    return found


def _wall(source: str) -> AbstractContextManager[None]:
    exists = os.path.exists(os.path.expanduser(source))  # these two raise nothing for any text
    return one_line(f"the data set {source}", "" if exists else f"; {_KINDS}; {_LOGIN}")


def _selected(splits: Splits, split: str, source: str) -> list[Located]:
    """Return the rows of one split, or of an expression of `datasets` such as `train[:100]` or `train+test`."""
    if UNDIVIDED in splits:
        return splits[UNDIVIDED]()
    if split in splits:
        return splits[split]()
    names = sorted(splits)
    if split == "all":
        return [row for name in names for row in splits[name]()]
    if not any(sign in split for sign in "[+"):
        raise DataError(f"the data {source} have no split {split!r} (splits: {', '.join(names)})")
    from datasets import ReadInstruction

    rows = {name: splits[name]() for name in names if name in split}
    parts = ReadInstruction.from_spec(split).to_absolute({name: len(found) for name, found in rows.items()})
    return [row for part in parts for row in rows[part.splitname][part.from_ : part.to]]
