"""Files are read as they are, or refused in one line with the row: CSV, JSON, Parquet, and damaged files of each."""

from __future__ import annotations

import datetime
import gzip
import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reward.dataset.reading import read_rows
from reward.dataset.values import MAX_DEPTH, DataError, is_missing, plain_value


def read(path: Path, content: bytes | str) -> list[dict[str, Any]]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [row for _, row in read_rows(str(path), None, "train")]


def refusal(path: Path, content: bytes | str) -> str:
    with pytest.raises(DataError) as refused:
        read(path, content)
    message = str(refused.value)
    assert "\n" not in message
    return message


# --- CSV


def test_a_quoted_cell_may_contain_anything(tmp_path: Path) -> None:
    for text in (
        "a\u2028b",
        "a\u2029b",
        "a\rb",
        "a\r\nb",
        "a\nb",
        "a\x0bb",
        "a\x0cb",
        "a\x1cb",
        "a\x85b",
        'a""b',
        ",",
    ):
        (row,) = read(tmp_path / "a.csv", f'prompt,n\n"{text}",007\n')
        assert row == {"prompt": text.replace('""', '"'), "n": "007"}
    assert len(read(tmp_path / "a.csv", f"prompt\n{'x' * 10**6}\n")[0]["prompt"]) == 10**6


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_may_end_in_any_usual_way(tmp_path: Path, end: str) -> None:
    text = end.join(["\ufeffprompt\tn", "a b\t1", "", '"c"\t', ""])
    assert read(tmp_path / "a.tsv", text) == [{"prompt": "a b", "n": "1"}, {"prompt": "c", "n": ""}]


@pytest.mark.parametrize(
    ("content", "mistake"),
    [
        (b"a,b\n1,2\n1\n1,2,3\n", "a.csv, row 2: 1 cells, but the header has 2; a.csv, row 3: 3 cells"),
        (b"a,a\n1,2\n", "a.csv, header: two columns have the name 'a'"),
        (b",a\n0,x\n", "a.csv, header: column 1 has no name (pandas writes its index so"),
        (b"a\nx\n\0\n", "a.csv:3: a NUL byte"),
        (b"a\nx\n\xff\n", "a.csv:3: not UTF-8"),
        ("a\nx\n".encode("utf-16"), "a.csv:1: not UTF-8"),
        (b'a,b\n1,2\n"3,4\n5,6\n', "a.csv, row 2: not CSV (unexpected end of data, up to line 4)"),
        (b'a,b\n"1"x,2\n', "a.csv, row 1: not CSV (',' expected after '\"', up to line 2)"),
        (b"a,b\n1,x\ry\n", "a.csv, row 1: not CSV (new-line character seen in unquoted field"),
        (b"", "contains no rows"),
        (b"a,b\n", "contains no rows"),
    ],
)
def test_a_mistake_in_csv_is_one_line_with_the_row(tmp_path: Path, content: bytes, mistake: str) -> None:
    assert mistake in refusal(tmp_path / "a.csv", content)


# --- JSON


def test_numbers_keep_their_types_and_nan_is_null(tmp_path: Path) -> None:
    text = (
        '{"i": 1, "f": 1.0, "b": true, "big": 123456789012345678901234567890, "n": NaN, "m": [-Infinity, 2]}'
    )
    for name, content in {"a.jsonl": text, "a.json": f"[{text}]", "b.json": f"{text}\n"}.items():
        (row,) = read(tmp_path / name, content)
        assert json.dumps(row) == json.dumps(
            {"i": 1, "f": 1.0, "b": True, "big": 123456789012345678901234567890, "n": None, "m": [None, 2]}
        )


def nested(depth: int) -> str:
    return '{"a": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


@pytest.mark.parametrize(
    ("bad", "mistake"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "the field 'a' appears twice in one object"),
        ('{"a": {"b": 1, "b": 1}}', "the field 'b' appears twice in one object"),
        ('{"a": 1e999}', "the number 1e999 is beyond the largest float"),
        ('{"a": ' + "9" * 5000 + "}", "not readable as JSON (Exceeds the limit"),
        (nested(100_000), "not readable as JSON"),
        (nested(MAX_DEPTH + 1), f"lists or objects nested deeper than {MAX_DEPTH}"),
        ('["a"]', 'not an object but ["a"]'),
        ('{"a": 1', "not JSON"),
        ('{"a": "\x01"}', "not JSON (Invalid control character"),
    ],
)
def test_a_mistake_in_json_is_one_line_with_the_row(tmp_path: Path, bad: str, mistake: str) -> None:
    for name, content, where in [
        ("a.jsonl", '{"a": 1}\n' + bad, "a.jsonl:2: "),
        ("a.json", '[{"a": 1},\n' + bad + "]", "a.json, row 2: "),
        ("b.json", '{"a": 1}\n' + bad, "b.json:2: "),
    ]:
        message = refusal(tmp_path / name, content)
        assert message.startswith(where)
        assert mistake in message


def test_nesting_up_to_the_limit_is_read(tmp_path: Path) -> None:
    assert len(read(tmp_path / "a.jsonl", nested(MAX_DEPTH))) == 1


@pytest.mark.parametrize(
    ("content", "mistake"),
    [
        ("[]", "contains no rows"),
        ("  [ ] x", "text follows the list"),
        ('[{"a": 1}] {"a": 2}', "a.json: text follows the list of 1 rows"),
        ('[{"a": 1},]', "a.json, row 2: not JSON (Expecting value"),
        ('[{"a": 1} {"a": 2}]', "a.json, row 1: not JSON (Expecting ',' or ']' at line 1, column 11)"),
        ('[{"a": 1}', "a.json, row 1: not JSON (Expecting ',' or ']'"),
        ("[", "a.json, row 1: not JSON (Expecting value"),
        ('{\n"a": 1\n}', "a.json:1: not JSON"),
        ("7", "a.json:1: not an object but 7"),
        (b'[{"a":\n"\xff"}]', "a.json:2: not UTF-8"),
    ],
)
def test_a_document_that_is_no_list_of_objects_is_refused(
    tmp_path: Path, content: str | bytes, mistake: str
) -> None:
    assert mistake in refusal(tmp_path / "a.json", content)


# --- Parquet


def test_the_values_of_parquet_are_those_that_json_has(tmp_path: Path) -> None:
    utc = datetime.UTC
    values: dict[str, tuple[pyarrow.Array, Any]] = {
        "date": (pyarrow.array([datetime.date(2024, 1, 5)]), "2024-01-05"),
        "time": (pyarrow.array([datetime.time(9, 30)]), "09:30:00"),
        "stamp": (pyarrow.array([datetime.datetime(2024, 1, 5)]), "2024-01-05T00:00:00"),
        "zone": (pyarrow.array([datetime.datetime(2024, 1, 5, tzinfo=utc)]), "2024-01-05T00:00:00+00:00"),
        "nano": (pyarrow.array([1], pyarrow.timestamp("ns")), "1970-01-01T00:00:00.000000001"),
        "span": (pyarrow.array([datetime.timedelta(seconds=1.5)]), 1.5),
        "price": (pyarrow.array([Decimal("1.50")]), 1.5),
        "whole": (pyarrow.array([Decimal("12345678901234567890")]), 12345678901234567890),
        "half": (pyarrow.array([0.5], pyarrow.float16()), 0.5),
        "single": (pyarrow.array([0.25], pyarrow.float32()), 0.25),
        "unsigned": (pyarrow.array([2**64 - 1], pyarrow.uint64()), 2**64 - 1),
        "nan": (pyarrow.array([float("nan")]), None),
        "infinite": (pyarrow.array([float("-inf")]), None),
        "list": (pyarrow.array([[1.0, float("nan"), None]]), [1.0, None, None]),
        "map": (pyarrow.array([[("k", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())), {"k": 1}),
        "choice": (pyarrow.array(["a"]).dictionary_encode(), "a"),
        "binary": (pyarrow.array([b"\xff"]), b"\xff"),
        "null": (pyarrow.nulls(1), None),
    }
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({name: array for name, (array, _) in values.items()}), file)
    ((where, row),) = read_rows(str(file), None, "train")
    assert where == "a.parquet, row 1"
    assert row == {name: expected for name, (_, expected) in values.items()}
    assert {name: type(value) for name, value in row.items()} == {
        name: type(v) for name, (_, v) in values.items()
    }


@pytest.mark.parametrize(
    ("array", "mistake"),
    [
        (pyarrow.array([0, 2**31 - 1], pyarrow.date32()), "a.parquet, row 2: "),
        (
            pyarrow.array([Decimal("0.1"), Decimal("0.12345678901234567890123")]),
            "row 2: the field 'x' has the decimal",
        ),
        (
            pyarrow.array([[], [("k", 1), ("k", 2)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
            "a.parquet, row 2: ",
        ),
    ],
)
def test_a_value_that_python_lacks_is_one_line_with_the_row(
    tmp_path: Path, array: pyarrow.Array, mistake: str
) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"x": array}), tmp_path / "a.parquet")
    assert mistake in refusal(tmp_path / "a.parquet", (tmp_path / "a.parquet").read_bytes())


def test_two_columns_of_a_name_are_refused(tmp_path: Path) -> None:
    table = pyarrow.table([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert "a.parquet: two columns have the name 'a'" in refusal(
        tmp_path / "a.parquet", (tmp_path / "a.parquet").read_bytes()
    )


# --- The values


@pytest.mark.parametrize(
    "value", [None, float("nan"), float("inf"), "", " \n\t", "\u00a0\u200b\ufeff", [], {}, b""], ids=ascii
)
def test_there_is_one_rule_for_missing_values(value: Any) -> None:
    assert is_missing(value)


@pytest.mark.parametrize(
    "value", [0, 0.0, False, "0", "nan", "null", "\u200bx", [None], [""], {"a": None}], ids=ascii
)
def test_other_values_are_not_missing(value: Any) -> None:
    assert not is_missing(value)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(value=plain)
def test_values_of_json_stay_as_they_are(value: Any) -> None:
    assert repr(plain_value(value)) == repr(value)


# --- Damaged files

ROWS = [
    {"prompt": f"What is {i}?", "answer": str(i), "n": i, "list": [i, None], "x": i / 7} for i in range(30)
]


def sound_files() -> dict[str, bytes]:
    table = pyarrow.Table.from_pylist(ROWS)
    parquet = {}
    for compression in ("none", "snappy", "zstd"):
        buffer = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(table, buffer, compression=compression)
        parquet[f"{compression}.parquet"] = buffer.getvalue().to_pybytes()
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    cells = "".join(f'"{row["prompt"]}",{row["answer"]}\n' for row in ROWS)
    return {
        **parquet,
        "a.jsonl": lines,
        "a.json": json.dumps(ROWS).encode(),
        "a.csv": b"prompt,answer\n" + cells.encode(),
        "a.tsv": b"prompt\tanswer\n" + cells.replace(",", "\t").encode(),
        "a.jsonl.gz": gzip.compress(lines, mtime=0),
    }


SOUND = sound_files()
ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "cp500", "utf-7", "utf-8-sig")


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Return the content after one to three kinds of damage, which a seed decides."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(7):
            case 0:
                del changed[at:]
            case 1:
                del changed[:at]
            case 2 if changed:
                changed[at % len(changed)] ^= 1 << rng.randrange(8)
            case 3:
                changed[at : at + 9] = rng.randbytes(9)
            case 4:
                changed[at:at] = rng.choice(
                    [b"\0", b'"', b"[" * 2000, b"\r", b"\xff", b"{}", b",", b"\n\n", b"NaN"]
                )
            case 5:
                changed = bytearray(changed.decode("latin-1").encode(rng.choice(ENCODINGS), "replace"))
            case 6:
                changed[at:at] = changed[: rng.randrange(200)]
    return bytes(changed)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(sorted(SOUND)), seed=st.integers(0, 2**32))
def test_a_damaged_file_is_read_or_refused_in_one_line_that_names_it(
    tmp_path_factory: pytest.TempPathFactory, name: str, seed: int
) -> None:
    refused_or_read(tmp_path_factory.mktemp("f") / name, damaged(SOUND[name], random.Random(seed)))


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(sorted(SOUND)),
    content=st.binary(max_size=300) | st.text(max_size=200).map(str.encode),
)
@example("a.json", b"[")
def test_any_bytes_are_read_or_refused_in_one_line_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes
) -> None:
    refused_or_read(tmp_path_factory.mktemp("f") / name, content)


def refused_or_read(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        rows = read_rows(str(path), None, "train")
    except DataError as error:
        message = str(error)
        assert path.name in message
        assert len(message.splitlines()) == 1
        message.encode()
    else:
        for where, row in rows:
            assert where.startswith(path.name)
            assert repr(plain_value(row)) == repr(row)
