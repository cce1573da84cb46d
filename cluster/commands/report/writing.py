"""`launch.py report`: reads runs, draws them, writes the page and the plots."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cluster.commands.report.charts import drawn_sections
from cluster.commands.report.figures import png
from cluster.commands.report.page import page
from cluster.commands.report.runs import labels, read_run
from cluster.core.files import write_atomically
from cluster.core.project import code_version


def write_report(paths: Sequence[Path], output: Path | None) -> tuple[Path, Path]:
    """Write the report on the runs in `paths`. Returns the page, and the directory of the PNG plots beside it.

    Args:
        output: of the page; None is `report.html` in the run's directory, or, of several runs, in the one above the
            first.

    Raises:
        NotARunError: one of `paths` holds no run.
        OSError: it cannot be written.
    """
    unique = list(dict.fromkeys(path.absolute() for path in paths))
    runs = [read_run(path, label) for path, label in zip(unique, labels(unique), strict=True)]
    file = output or (unique[0] if len(unique) == 1 else unique[0].parent) / "report.html"
    sections = list(drawn_sections(runs))
    title = runs[0].label if len(runs) == 1 else f"{len(runs)} runs"
    made = f"{datetime.now():%Y-%m-%d %H:%M}, {code_version()}"
    plots = file.with_name(f"{file.stem}_plots")
    plots.mkdir(parents=True, exist_ok=True)
    for section in sections:
        for drawn in section.charts:
            (plots / f"{drawn.file_stem}.png").write_bytes(png(drawn.figure))
    write_atomically(file, page(title, runs, sections, made).encode("utf-8", errors="backslashreplace"))
    return file, plots
