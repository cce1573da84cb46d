"""The report contains all metrics of a run, and shows the output of a model only as text."""

from __future__ import annotations

import json
import math
import subprocess
import unicodedata
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cluster.commands.report.charts import constant_value, drawn_sections
from cluster.commands.report.figures import running_mean, thinned
from cluster.commands.report.page import differing_settings, page, write_report
from cluster.commands.report.runs import Run, Transcript, labels, read_run
from cluster.core.config import RunConfig
from cluster.core.errors import RefusedError
from cluster.core.text import visible_text
from cluster.core.types import Group, Prompt, Sampling, ScoredGroup, Verdict
from cluster.metrics.catalogue import METRICS, SECTIONS
from cluster.run_state.run_directory import RunDirectory
from cluster.tracking.jsonl import MetricsFile
from cluster.tracking.transcripts import write_transcripts
from launch import app
from tests.browser import NO_BROWSER, browser_command
from tests.builders import make_response

EVIL = (
    '</pre></article><script>document.title = "taken over"</script>'
    '<img src=x onerror="document.title=1">&lt;b&gt;{{ 7 * 7 }}'
)
hostile_text = st.lists(
    st.sampled_from(
        [
            "<script>",
            "</pre>",
            "<!--",
            "]]>",
            '"',
            "'",
            "&amp;",
            "\x1b[31m",
            "\u202e",
            "\ud800",
            "{{1}}",
            "a",
            "\n",
            "\0",
        ]
    )
).map("".join)


class Reader(HTMLParser):
    """Parse a page as a browser does, into tags with attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def record(**changes: Any) -> dict[str, Any]:
    response = {
        "text": "20",
        "outcome": "correct",
        "reward": 1.0,
        "answer": "20",
        "reason": "",
        "tokens": 2,
        "finish_reason": "stop",
    }
    responses = [response | changes]
    return {
        "prompt_id": "train/0/1",
        "category": None,
        "prompt": "What?",
        "correct": 1,
        "valid": 1,
        "responses": responses,
    }


def made_run(
    label: str = "one", rows: int = 3, groups: list[dict[str, Any]] | None = None, **config: Any
) -> Run:
    metrics = [
        {
            "step": step,
            "time": 100.0 + step,
            "reward/mean": 0.1 * step,
            "eval/pass_at_1": 0.2,
            "response_length/mean": 9.0,
        }
        for step in range(rows)
    ]
    return Run(
        label=label,
        config=RunConfig.model_validate(config),
        rows=metrics,
        summary={},
        transcripts=[Transcript(1, [record()] if groups is None else groups)],
    )


def html(*runs: Run) -> str:
    return page("runs", runs, [], "today")


TAGS = [tag for tag, _ in Reader(html(made_run())).tags]


@settings(max_examples=25)  # each makes a page
@given(hostile_text, hostile_text, hostile_text)
def test_model_output_is_always_text(text: str, answer: str, prompt: str) -> None:
    group = record(text=text, answer=answer, reason=text, reward=answer) | {
        "prompt": prompt,
        "prompt_id": text,
    }
    read = Reader(html(made_run(groups=[group])))
    assert [tag for tag, _ in read.tags] == TAGS
    for shown in (text, answer, prompt):
        assert visible_text(shown) in read.text


@given(st.text())
def test_invisible_characters_are_escaped(text: str) -> None:
    left = {unicodedata.category(character) for character in visible_text(text) if character not in "\n\t"}
    assert not left & {"Cc", "Cf", "Cs"}


def test_long_texts_are_truncated_with_a_remark() -> None:
    assert visible_text("x" * 6100, 6000).endswith("x\n[… 100 more characters]")


def test_the_page_has_no_scripts_and_no_external_resources() -> None:
    runs = [made_run()]
    read = Reader(page("runs", runs, list(drawn_sections(runs)), "today"))
    (policy,) = [a["content"] for tag, a in read.tags if tag == "meta" and "http-equiv" in a]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in read.tags}
    images = [a["src"] or "" for tag, a in read.tags if tag == "img"]
    assert images
    assert all(source.startswith("data:image/svg+xml;base64,") for source in images)
    links = [a["href"] or "" for tag, a in read.tags if tag == "a"]
    ids = {a["id"] for _, a in read.tags if "id" in a}
    assert {link.removeprefix("#") for link in links} <= ids, "all links stay on the page, and lead somewhere"


def test_all_metrics_are_drawn_or_listed_as_constant() -> None:
    """The metrics without a chart are listed here."""
    charted = {key for section in SECTIONS for chart in section.charts for key in chart.keys}
    without_chart = {
        "eval/pass_at_1_stderr",
        "eval/response_length_mean",
        "reward/correct_fraction",
        "reward/overlong_penalty_mean",
    }
    without_chart |= {
        "objective/importance_weight_mean",
        "objective/importance_capped_fraction",
        "response_length/std",
    }
    without_chart |= {
        "objective/gradient_fraction_positive",
        "logprob_gap/max",
        "logprob_gap/missing_fraction",
    }
    without_chart |= {"progress/step", "progress/weight_version", "progress/epoch"}
    assert charted | without_chart == set(METRICS)
    (evaluation, reward, length) = drawn_sections([made_run(), made_run("two", rows=5)])
    assert evaluation.constant == {"eval/pass_at_1": 0.2}
    assert [one.chart.keys for one in reward.charts] == [("reward/mean",)]
    assert length.constant == {"response_length/mean": 9.0}


def test_a_metric_is_constant_only_if_it_is_equal_in_all_runs() -> None:
    other = made_run()
    other.rows[0]["response_length/mean"] = 10.0  # type: ignore[index]
    assert constant_value("response_length/mean", [made_run(), other]) is None
    assert constant_value("response_length/mean", [made_run(rows=1)]) is None, "one step is no course"


def test_differing_settings_are_shown_side_by_side() -> None:
    runs = [made_run(seed=1), made_run("two", seed=2, objective={"name": "hpo", "alpha": 0.6})]
    differing = differing_settings(runs)
    assert ("seed", ["1", "2"]) in differing
    assert ("objective.alpha", ["1.0", "0.6"]) in differing
    assert len(differing) == 3
    text = Reader(html(*runs)).text
    assert "Settings that differ between the runs." in text
    assert "All settings are equal." in Reader(html(made_run(), made_run("two"))).text


def test_labels_are_the_shortest_distinct_paths() -> None:
    assert labels([Path("/a/x"), Path("/a/y")]) == ["x", "y"]
    assert labels([Path("/a/x"), Path("/b/x"), Path("/b/y")]) == ["a/x", "b/x", "b/y"]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=900))
def test_thinning_keeps_the_mean_of_full_parts_and_the_order(values: list[float]) -> None:
    points = [(float(x), y) for x, y in enumerate(values)]
    thin = thinned(points, 100)
    assert len(thin) <= 100 or len(thin) == len(points)
    assert sorted(thin) == list(thin)
    if len(points) % len(thin) == 0:
        assert math.isclose(sum(y for _, y in thin) / len(thin), sum(values) / len(values), abs_tol=1e-6)
    smooth = running_mean(points, 5)
    assert [x for x, _ in smooth] == [x for x, _ in points]
    assert min(values) - 1e-6 <= min(y for _, y in smooth)
    assert max(y for _, y in smooth) <= max(values) + 1e-6


# --- Files

Make = Callable[..., Path]


@pytest.fixture
def on_disk(tmp_path: Path) -> Make:
    def make(name: str = "demo", finished: bool = True, **config: Any) -> Path:
        settings = RunConfig.model_validate({"name": name, "directory": str(tmp_path), **config})
        run = RunDirectory(settings.run_directory)
        run.create()
        run.write_config(settings)
        with MetricsFile(run.metrics_file, run.superseded_metrics_file) as metrics:
            for step in range(5):
                metrics.log(
                    step, {"reward/mean": math.nan if step == 2 else 0.1 * step, "eval/pass_at_1": 0.1 * step}
                )
        prompt = Prompt("train/0/1", f"What? {EVIL}", (1,), None, Sampling(2, 1.0, 8, None))
        verdicts = (Verdict("correct", 1.0, EVIL, EVIL), Verdict("incorrect", 0.0, None, ""))
        group = ScoredGroup(Group(prompt, (make_response(), make_response()), "rollout-0"), verdicts)
        write_transcripts(run.transcript_file(4), 4, [group], 2)
        if finished:
            run.write_summary({"pass_at_1_after": 0.4})
        return run.path

    return make


def test_a_report_of_two_runs_is_one_file_and_its_plots(on_disk: Make, tmp_path: Path) -> None:
    paths = [on_disk(), on_disk("other", finished=False, seed=3, steps=7)]
    file, plots = write_report([*paths, paths[0]], None)
    assert file == tmp_path / "report.html"
    read = Reader(file.read_text())
    assert "finished" in read.text
    assert "at step 4 of 7" in read.text
    assert EVIL in read.text
    assert {plot.name for plot in plots.iterdir()} == {
        "eval_pass_1_on_eval_prompts.png",
        "reward_mean_reward_per_batch.png",
    }
    assert all(plot.read_bytes().startswith(b"\x89PNG") for plot in plots.iterdir())


def test_the_command_writes_the_report_and_refuses_other_directories(on_disk: Make, tmp_path: Path) -> None:
    cli, run = CliRunner(), on_disk()
    result = cli.invoke(app, ["report", str(run)])
    assert result.exit_code == 0, result.output
    assert (run / "report.html").exists()
    result = cli.invoke(app, ["report", str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert "nowhere: this is not a run directory (it has no config.yaml)" in result.stderr


def test_a_broken_run_is_named(on_disk: Make) -> None:
    run = on_disk()
    (run / "config.yaml").write_text("objective: {alpha: none}")
    with pytest.raises(RefusedError, match=r"demo/config\.yaml: .*objective\.alpha"):
        read_run(run, "demo")


@pytest.mark.slow
def test_a_browser_shows_the_text_and_runs_nothing(on_disk: Make, tmp_path: Path) -> None:
    """This also holds without the page's own policy against scripts."""
    browser = browser_command()
    if browser is None:
        pytest.skip(NO_BROWSER)
    file, _ = write_report([on_disk()], None)
    bare = tmp_path / "without_policy.html"
    policy = "<meta http-equiv="
    bare.write_text("\n".join(line for line in file.read_text().splitlines() if policy not in line))
    control = tmp_path / "control.html"
    control.write_text(f"<title>untouched</title><pre>{EVIL}</pre>")
    titles = {}
    for page_file in (file, bare, control):
        command = [*browser, "--dump-dom", page_file.as_uri()]
        process = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert process.returncode == 0, process.stderr
        dom = process.stdout
        titles[page_file] = dom[dom.index("<title>") + 7 : dom.index("</title>")]
        if page_file is not control:
            assert EVIL in Reader(dom).text
    assert titles[control] in ("taken over", "1"), "else this test could not fail"
    assert titles[file] == titles[bare] == "demo · hpo-trainer"


def test_the_json_transcripts_contain_what_the_page_shows(on_disk: Make) -> None:
    file = RunDirectory(on_disk()).transcript_file(4)
    (line,) = file.with_suffix(".jsonl").read_text().splitlines()
    told = json.loads(line)
    assert (told["correct"], told["valid"], told["prompt"]) == (1, 2, f"What? {EVIL}")
    assert [one["outcome"] for one in told["responses"]] == ["correct", "incorrect"]
    assert told["responses"][0]["answer"] == EVIL
