"""The same rows give the same values from a file, a directory and the hub, in every format that can hold them."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward.dataset.reading import read_rows, read_splits
from reward.dataset.values import DataError
from tests.reward.dataset.hub import serve_as_hub

Rows = list[dict[str, Any]]


def write_jsonl(file: Path, rows: Rows) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8", newline="")


def write_json(file: Path, rows: Rows) -> None:
    file.write_text(json.dumps(rows, indent=1), "utf-8")


def write_parquet(file: Path, rows: Rows) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)


def write_csv(file: Path, rows: Rows) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if file.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    "jsonl": write_jsonl,
    "ndjson": write_jsonl,
    "json": write_json,
    "parquet": write_parquet,
    "csv": write_csv,
    "tsv": write_csv,
}


LAYOUTS = ("directory", "shards", "folders", "any name")


def every_way_in(
    directory: Path, suffix: str, rows: Rows, layout: str, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Rows]:
    """Return the rows as they are read from a file, from a directory of a usual layout, and from a hub."""
    half = len(rows) // 2 or 1
    files = {
        "directory": {f"my_train.{suffix}": rows, f"test.{suffix}": rows[:1]},
        "shards": {
            f"data/train-00000-of-00002.{suffix}": rows[:half],
            f"data/train-00001-of-00002.{suffix}": rows[half:],
        },
        "folders": {f"train/a.{suffix}": rows, f"test/a.{suffix}": rows[:1]},
        "any name": {f"questions.{suffix}": rows},
    }[layout]
    WRITERS[suffix](directory / f"rows.{suffix}", rows)
    for name, part in files.items():
        file = directory / "data set" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if part:
            WRITERS[suffix](file, part)
    serve_as_hub(monkeypatch, {"some/data": directory / "data set"})
    sources = (str(directory / f"rows.{suffix}"), str(directory / "data set"), "some/data")
    return {source: [row for _, row in read_rows(source, None, "train")] for source in sources}


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
lookalikes = st.sampled_from(
    ["007", "1", "1.50", "2024-01-05", "2024-01-05T10:00:00", "true", "null", "nan", ""]
)
lines = st.sampled_from(
    ["a\u2028b", "a\rb", "a\r\nb", "a\nb", "a\x0bb", "a\x85b", 'a "b" c', "a,b\tc", "x" * 200_000]
)
cells = texts | lookalikes | lines
columns = st.sampled_from(
    [
        cells,
        st.none() | cells,
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.none() | st.booleans(),
        st.lists(st.integers(0, 9), max_size=3),
        st.lists(st.fixed_dictionaries({"role": texts, "content": cells}), max_size=2),
        st.fixed_dictionaries({"a": cells, "b": st.none() | st.integers(0, 9)}),
    ]
)


@st.composite
def tables(draw: st.DrawFn, columns: st.SearchStrategy[Any]) -> Rows:
    names = ["prompt", *draw(st.lists(st.sampled_from(["answer", "level", "Ünïcode name"]), unique=True))]
    row = st.fixed_dictionaries({name: draw(columns) for name in names})
    rows: Rows = draw(st.lists(row, min_size=1, max_size=5))
    return rows


@settings(max_examples=25, deadline=None)
@given(
    rows=tables(columns),
    suffix=st.sampled_from(["jsonl", "ndjson", "json", "parquet"]),
    layout=st.sampled_from(LAYOUTS),
)
def test_typed_rows_are_the_same_on_every_way_in(
    tmp_path_factory: pytest.TempPathFactory, rows: Rows, suffix: str, layout: str
) -> None:
    def typed(rows: Rows) -> str:  # 1, 1.0 and true differ in JSON
        return json.dumps(rows, sort_keys=True)

    with pytest.MonkeyPatch.context() as patch:
        found = every_way_in(tmp_path_factory.mktemp("t"), suffix, rows, layout, patch)
    assert {source: typed(read) for source, read in found.items()} == dict.fromkeys(found, typed(rows))


@settings(max_examples=25, deadline=None)
@given(
    rows=tables(st.just(cells)),
    suffix=st.sampled_from(["csv", "tsv", "jsonl", "json", "parquet"]),
    layout=st.sampled_from(LAYOUTS),
)
def test_texts_are_the_same_on_every_way_in(
    tmp_path_factory: pytest.TempPathFactory, rows: Rows, suffix: str, layout: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        found = every_way_in(tmp_path_factory.mktemp("t"), suffix, rows, layout, patch)
    assert found == dict.fromkeys(found, rows)


def test_a_card_decides_which_files_belong_to_a_subset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = [
        {"config_name": "easy", "data_files": [{"split": "train", "path": "a/*.csv"}], "sep": ";"},
        {"config_name": "hard", "data_files": [{"split": "train", "path": "b/*.csv"}]},
        {"config_name": "headless", "data_files": "b/*.csv", "skiprows": 1},
    ]
    (tmp_path / "README.md").write_text(f"---\n{json.dumps({'configs': card})}\n---\n# Data\n")
    for name, text in {"a/x.csv": "prompt;n\neasy, 1;01\n", "b/x.csv": "prompt,n\nhard 1,01\n"}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    serve_as_hub(monkeypatch, {"some/data": tmp_path})
    for source in (str(tmp_path), "some/data"):
        ((where, row),) = read_rows(source, "easy", "train")
        assert row == {"prompt": "easy, 1", "n": "01"}
        assert where.endswith("a/x.csv, row 1")
        assert read_rows(source, "hard", "train")[0][1] == {"prompt": "hard 1", "n": "01"}
        with pytest.raises(DataError, match=r"the card of .* sets skiprows"):
            read_rows(source, "headless", "train")
        with pytest.raises(DataError, match="BuilderConfig 'none' not found"):
            read_rows(source, "none", "train")


def test_splits_are_read_by_name_and_by_the_expressions_of_datasets(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": str(i)} for i in range(5)])
    write_jsonl(tmp_path / "test.jsonl", [{"prompt": "t"}])

    def prompts(split: str) -> str:
        return "".join(row["prompt"] for _, row in read_rows(str(tmp_path), None, split))

    assert prompts("train") == "01234"
    assert prompts("train[1:3]+test") == "12t"
    assert prompts("train[:40%]") == "01"
    assert prompts("all") == "t01234"
    assert {name: len(rows) for name, rows in read_splits(str(tmp_path)).items()} == {"train": 5, "test": 1}
    for split in ("eval", "train[", "nowhere[:3]"):
        with pytest.raises(DataError, match=r"split|nowhere"):
            prompts(split)


def test_compressed_files_are_read_and_other_archives_are_refused(tmp_path: Path) -> None:
    line = b'{"prompt": "2024-01-05"}\n'
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(line))
    for source in (tmp_path, tmp_path / "train.jsonl.gz"):
        assert [row for _, row in read_rows(str(source), None, "train")] == [{"prompt": "2024-01-05"}]
    (tmp_path / "train.jsonl.gz").unlink()
    (tmp_path / "train.jsonl.xz").write_bytes(line)
    with pytest.raises(DataError, match=r"train.jsonl.xz: the name of a data file ends in"):
        read_rows(str(tmp_path), None, "train")


def test_a_directory_of_several_formats_is_refused(tmp_path: Path) -> None:
    """`datasets` would read one of them and silently drop the other."""
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": "a"}])
    write_csv(tmp_path / "train.csv", [{"prompt": "b"}])
    with pytest.raises(DataError, match=r"several formats \(.csv, .json\)"):
        read_rows(str(tmp_path), None, "train")


def test_what_datasets_saved_is_read_with_its_types(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "n": 1, "x": 0.5, "t": "007"}, {"prompt": "b", "n": None, "x": None, "t": ""}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(tmp_path / "split")
    for name in ("one", "split"):
        assert [row for _, row in read_rows(str(tmp_path / name), None, "train")] == rows


FOREIGN = {
    "a script": {"d.py": b"import datasets\n", "train.jsonl": b'{"prompt": "a"}\n'},
    "a broken card": {"README.md": b"---\nconfigs: [\n---\n", "train.jsonl": b'{"prompt": "a"}\n'},
    "a card without data": {"README.md": b"---\nconfigs: 7\n---\n", "train.jsonl": b'{"prompt": "a"}\n'},
    "a broken archive": {"train.zip": b"PK\x03\x04broken"},
    "a broken tar": {"train.tar": b"no tar"},
    "a broken arrow file": {"train.arrow": b"no arrow"},
    "a broken parquet file": {"train.parquet": b"PAR1" + b"\0" * 40 + b"PAR1"},
    "bytes": {"train.txt": b"\xff\xfe\xff"},
    "nothing": {},
    "a lost saved data set": {"state.json": b"{}"},
    "a broken saved data set": {"dataset_dict.json": b'{"splits": ["train"]}'},
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_whatever_a_library_raises_is_one_line_that_names_the_data(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    directory = tmp_path / "d"
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    with pytest.raises(DataError) as refusal:
        read_rows(str(directory), None, "train")
    assert str(directory) in str(refusal.value) or any(name in str(refusal.value) for name in files)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "kind", [RuntimeError, MemoryError, KeyError, RecursionError, TypeError, AssertionError]
)
def test_no_type_of_exception_passes_the_wall(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str, subset: str | None) -> None:
        raise kind("first\nsecond \ud800")

    monkeypatch.setattr("datasets.load_dataset_builder", fail)
    with pytest.raises(
        DataError, match=r"the data set some/data cannot be read \(\w+Error: .*first.*second"
    ) as error:
        read_rows("some/data", None, "train")
    assert "\n" not in str(error.value).encode().decode()


@pytest.mark.parametrize(
    "name", ["train.jsonl", "README.md", "part/train.jsonl", "data-00000-of-00001.arrow"]
)
def test_a_pipe_in_a_directory_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    write_jsonl(tmp_path / "other.jsonl", [{"a": 1}])
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=f"{name}: this is a named pipe"):
        read_splits(str(tmp_path))
