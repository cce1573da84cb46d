"""The kept results of comparisons of objectives, and the document that shows them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import evidence
from benchmarks.marks import part_of, split, write_part
from cluster.commands.compare.results import shown
from cluster.commands.compare.run import write_results
from tests.cluster.commands.compare.test_compare import finish, planned


def test_the_document_shows_what_was_kept() -> None:
    remedy = "run: python benchmarks/evidence.py show --write"
    assert part_of(evidence.DOCUMENT, evidence.MARKS) == evidence.tables(evidence.KEPT), remedy
    assert part_of(evidence.DOCUMENT, evidence.TOY_MARKS) == evidence.toy_tables(evidence.TOY), remedy


def test_what_was_kept_names_clean_code() -> None:
    for file in evidence.KEPT.glob("*.json"):
        found = json.loads(file.read_text(encoding="utf-8"))
        assert not found["commit"].endswith("-dirty"), file
        assert not found["comparison"]["missing"], file


def test_the_numbers_of_a_comparison_are_kept_and_shown(tmp_path: Path) -> None:
    comparison = planned(tmp_path)
    finish(comparison)
    results = write_results(comparison)
    file = evidence.keep(comparison.directory, tmp_path / "kept")
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["comparison"] == json.loads((comparison.directory / "comparison.json").read_text())
    assert found["rewards"].keys() == {run.name for run in comparison.runs}
    assert {len(rewards) for rewards in found["rewards"].values()} == {comparison.runs[0].config.steps}

    text = evidence.tables(tmp_path / "kept")
    for key in evidence.COLUMNS:
        measure = evidence.MEASURES_BY_KEY[key]
        for variant in comparison.variants:
            assert f"| {shown(results.estimate(measure, variant), measure)} " in text, (key, variant)
    for key in evidence.COMPARED:
        measure = evidence.MEASURES_BY_KEY[key]
        assert f"| {shown(results.difference(measure, 'high'), measure, signed=True)} " in text, key


def test_without_marks_nothing_is_written(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text("no marks\n")
    with pytest.raises(ValueError, match="the document has no lines"):
        write_part(file, evidence.MARKS, "text")
    assert file.read_text() == "no marks\n"


def test_only_the_part_between_the_marks_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    before, behind = f"before\n{evidence.MARKS[0]}", f"{evidence.MARKS[1]}\nbehind\n"
    file.write_text(f"{before}old\n{behind}")
    write_part(file, evidence.MARKS, "new\n")
    assert split(file.read_text(), evidence.MARKS) == (before, "new\n", behind)
