"""The two splits share no prompt, and every mistake in the data is reported in one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward.dataset.reading import read_rows
from reward.dataset.rows import (
    DatasetOptions,
    DatasetProblems,
    Rows,
    is_eval,
    load_rows,
    prompt_key,
    render,
)
from reward.dataset.values import Row
from reward.tasks.http.task import HttpOptions, HttpTask


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def loaded(path: Path, rows: list[Any], **options: Any) -> Rows:
    return load_rows(DatasetOptions(data=write(path / "data.jsonl", rows), **options))


def numbered_rows(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(count)]


prompts = st.text(alphabet="ab \n", min_size=1).filter(str.strip)
data = st.lists(
    st.one_of(prompts, prompts.map(lambda text: [{"role": "user", "content": text}])).map(
        lambda prompt: {"prompt": prompt}
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60)
@given(rows=data, fraction=st.floats(0.05, 0.95), more=data)
def test_no_prompt_is_in_both_splits(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], fraction: float, more: list[Any]
) -> None:
    """This holds for every form of a prompt, and for eval rows from the same file or from a separate one."""
    path = tmp_path_factory.mktemp("data")
    own = {"eval_data": write(path / "eval.jsonl", more)}
    for split in (loaded(path, rows, eval_fraction=fraction), loaded(path, rows, **own)):
        train, evaluation = (
            [prompt_key(row["prompt"]) for row in part] for part in (split.train, split.eval)
        )
        assert not set(train) & set(evaluation)
        assert len(set(train)) == len(train)
        assert len(set(evaluation)) == len(evaluation)
        assert {prompt_key(row["prompt"]) for row in rows} <= {*train, *evaluation}


def test_a_split_depends_on_the_prompt_alone(tmp_path: Path) -> None:
    few, many = loaded(tmp_path, numbered_rows(50)), loaded(tmp_path, numbered_rows(500)[::-1])
    assert {row["prompt"] for row in few.train} <= {row["prompt"] for row in many.train}
    assert {row["prompt"] for row in few.eval} <= {row["prompt"] for row in many.eval}
    assert 30 < len(many.eval) < 70, "a tenth of 500"
    assert prompt_key(" a\n") == prompt_key("a") == prompt_key([{"role": "user", "content": "a"}])
    assert prompt_key("a") != prompt_key([{"role": "system", "content": "a"}])
    assert [key for key in map(prompt_key, "abcdefgh") if is_eval(key, 0.5)] == [
        prompt_key(letter) for letter in "abcdefgh" if int(prompt_key(letter)[0], 16) < 8
    ]


def test_the_first_eval_rows_are_not_the_first_rows_of_the_file(tmp_path: Path) -> None:
    evaluation = [row["prompt"] for row in loaded(tmp_path, numbered_rows(300), eval_fraction=0.5).eval]
    assert evaluation != sorted(evaluation, key=lambda prompt: int(prompt.split()[2]))


def test_notes_say_which_rows_are_left_out(tmp_path: Path) -> None:
    rows = [*numbered_rows(20), *numbered_rows(3), {"prompt": "x" * 100, "answer": "1"}]
    split = loaded(tmp_path, rows, max_prompt_characters=50)
    assert len(split.train) + len(split.eval) == 20
    repeated, too_long = split.notes
    assert repeated.endswith(
        "3 of 24 rows repeat an earlier prompt and are left out, the first is data.jsonl:21"
    )
    assert "1 of 24 prompts are longer than max_prompt_characters" in too_long
    evaluation = write(tmp_path / "eval.jsonl", numbered_rows(4))
    (both,) = loaded(tmp_path, numbered_rows(20), eval_data=evaluation).notes
    assert both.endswith("4 prompts are also eval prompts, and are not trained on")


@pytest.mark.parametrize(
    ("content", "mistake"),
    [
        (b'{"prompt": "a"}\n{"prompt": \n', "data.jsonl:2: not JSON (Expecting value at column 11)"),
        (b'{"prompt": "a"}\n\n{"prompt": "\xff"}', "data.jsonl:3: byte 13 is not UTF-8"),
        ('{"prompt": "a"}'.encode("utf-16"), "data.jsonl:1: byte 1 is not UTF-8"),
        (b'["a"]\n', 'data.jsonl:1: not an object but ["a"]'),
        (b"null", "data.jsonl:1: not an object but null"),
        (b'{"question": "a", "n": 1}', "data.jsonl:1: there is no field 'prompt' (fields: question, n)"),
        (b'{"prompt": null}', "data.jsonl:1: the field 'prompt' has no value"),
        (b"{}", "data.jsonl:1: there is no field 'prompt' (fields: none)"),
        (b'{"prompt": " \\n"}', "data.jsonl:1: the field 'prompt' is empty"),
        (b'{"prompt": "a \\ud83d"}', "data.jsonl:1: the field 'prompt' contains half of a surrogate pair"),
        (
            b'{"prompt": [{"role": "user", "content": "\\ude00"}]}',
            "data.jsonl:1: the prompt contains half of a surrogate pair",
        ),
        (b'{"prompt": 7}', "data.jsonl:1: the prompt must be text, or chat messages"),
        (b'{"prompt": []}', "data.jsonl:1: the field 'prompt' is empty"),
        (b'{"prompt": [{"role": "user"}]}', "data.jsonl:1: message 1 of the prompt has no content"),
        (b'{"prompt": [{"role": "user", "content": ""}]}', "data.jsonl:1: the last message is empty"),
        (b"", "contains no rows"),
        (b"\n\n", "contains no rows"),
        (b"[" * 100_000, "data.jsonl:1: not readable as JSON"),
        (b"1" * 10_000, "data.jsonl:1: not readable as JSON"),
        (b"x\n" * 5, "data.jsonl:3: not JSON (Expecting value at column 1); and 2 more"),
    ],
)
def test_an_invalid_row_is_reported_in_one_line(tmp_path: Path, content: bytes, mistake: str) -> None:
    (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r".+") as refusal:
        load_rows(DatasetOptions(data=str(tmp_path / "data.jsonl")))
    assert mistake in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_fields_that_a_task_needs_are_checked(tmp_path: Path) -> None:
    options = DatasetOptions(data=write(tmp_path / "data.jsonl", [*numbered_rows(2), {"prompt": "a"}]))
    with pytest.raises(ValueError, match=r"data.jsonl:3: there is no field 'answer' \(fields: prompt\)"):
        load_rows(options, needed=["answer"])


missing = st.sampled_from([None, float("nan"), float("inf"), "", " \n", "\u200b", [], {}])


@settings(max_examples=40)
@given(value=missing, field=st.sampled_from(["prompt", "answer"]), place=st.integers(0, 3))
def test_a_missing_value_is_refused_in_every_form(
    tmp_path_factory: pytest.TempPathFactory, value: Any, field: str, place: int
) -> None:
    rows = numbered_rows(4)
    rows[place][field] = value
    path = tmp_path_factory.mktemp("data")
    with pytest.raises(
        ValueError, match=rf"^data.jsonl:{place + 1}: the field '{field}' (has no value|is empty)"
    ):
        load_rows(DatasetOptions(data=write(path / "data.jsonl", rows)), ["answer"])


def test_a_missing_value_of_a_numeric_column_is_refused(tmp_path: Path) -> None:
    """For it pandas writes NaN, not null."""
    import pyarrow.parquet

    table = pyarrow.table({"prompt": ["a", "b"], "answer": [1.0, float("nan")]})
    pyarrow.parquet.write_table(table, tmp_path / "data.parquet")
    with pytest.raises(ValueError, match=r"^data.parquet, row 2: the field 'answer' has no value"):
        load_rows(DatasetOptions(data=str(tmp_path / "data.parquet")), ["answer"])


def test_a_field_that_some_rows_lack_is_noted(tmp_path: Path) -> None:
    """A user's function may need it, and every response to such a row would fail or be compared with nothing."""
    rows = [*numbered_rows(3), {"prompt": "a", "answer": ""}, {"prompt": "b", "level": 3}]
    (note,) = loaded(tmp_path, rows).notes
    assert note.endswith(
        "fields without a value: 'answer' in 2 of 5 rows, the first is data.jsonl:4; "
        "'level' in 4 of 5 rows, the first is data.jsonl:1"
    )


class Suspicious(DatasetProblems):
    def check_row(self, row: Row) -> None:
        if row["answer"] == "2":
            raise ValueError("an answer of 2")


def test_a_task_may_refuse_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", numbered_rows(20))
    with pytest.raises(ValueError, match=r"^data.jsonl:2: an answer of 2$"):
        Suspicious(DatasetOptions(data=path)).problems("train")


def test_bytes_cannot_be_sent_to_a_service(tmp_path: Path) -> None:
    import pyarrow.parquet

    table = pyarrow.table({"prompt": ["a", "b"], "image": [None, b"x"]})
    pyarrow.parquet.write_table(table, tmp_path / "data.parquet")
    path = str(tmp_path / "data.parquet")
    assert load_rows(DatasetOptions(data=path)).train
    with pytest.raises(ValueError, match=r"data.parquet, row 2: the field 'image' is binary"):
        HttpTask(HttpOptions(data=path)).problems("train")


def test_missing_and_misnamed_files_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    (tmp_path / "data.parquet").write_text("no parquet")
    (tmp_path / "data.txt").write_text("no data")
    for source, mistake in {
        None: "name the data: set task.options.data",
        str(tmp_path / "nowhere.jsonl"): "there is no file",
        str(tmp_path / "data.parquet"): r"data.parquet cannot be read \(ArrowInvalid",
        str(tmp_path / "nowhere"): "there is no file",
        "no-user/no-dataset": "the data set no-user/no-dataset cannot be read",
        "": "the source of the data is empty",
        "~no such user/data": "there is no file",
        "x" * 5000: "the data set xxx",
        "a\0b.csv": "there is no file",
        "\ud800": "there is no file",
        str(tmp_path / "data.txt"): r"data.txt: the name of a data file ends in .jsonl",
    }.items():
        with pytest.raises(ValueError, match=mistake) as refusal:
            load_rows(DatasetOptions(data=source))
        assert "\n" not in str(refusal.value)


def test_parquet_and_saved_data_sets_are_read_like_jsonl(tmp_path: Path) -> None:
    import datasets

    rows = numbered_rows(30)
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "data.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(tmp_path / "saved_dict")
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "train.jsonl", rows)
    expected = loaded(tmp_path, rows)
    for name in ("data.parquet", "saved", "saved_dict", "folder"):
        found = load_rows(DatasetOptions(data=str(tmp_path / name)))
        assert found.train == expected.train, name
        assert found.eval == expected.eval, name
    assert read_rows(str(tmp_path / "data.parquet"), None, "train")[4][0] == "data.parquet, row 5"
    with pytest.raises(ValueError, match=r"saved_dict have no split 'test' \(splits: train\)"):
        load_rows(DatasetOptions(data=str(tmp_path / "saved_dict"), data_split="test"))


def test_the_options_decide_the_form_of_a_prompt() -> None:
    text, chat = {"prompt": "Q?"}, {"prompt": [{"role": "user", "content": "Q?"}]}
    assert render(text, DatasetOptions()) == chat["prompt"]
    assert render(text, DatasetOptions(style="plain")) == "Q?"
    assert render(text, DatasetOptions(style="plain", instruction="In {one} word.")) == "Q?\n\nIn {one} word."
    for row in (text, chat):
        assert render(row, DatasetOptions(system="S", instruction="I")) == [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "Q?\n\nI"},
        ]
    assert render({"question": "Q?"}, DatasetOptions(prompt_field="question", style="plain")) == "Q?"
