"""The commands around jobs, as `launch.py` offers them: submit, status, logs, stop and list."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.table import Table

from cluster.commands.exits import EXIT_FAILED, EXIT_INTERRUPTED, refuse
from cluster.configuration.loading import load_config
from cluster.configuration.preflight import preflight
from cluster.core.config import RunConfig
from cluster.core.text import plain_text
from cluster.runtime.auth import send_token_to

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

    from cluster.commands.jobs.server import JobServer
    from cluster.commands.jobs.submission import Submission

STOP_TIMEOUT_S = 120.0
_Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"],
        help="http://HOST:8265 of the cluster's head node, HOST:6379, or auto (this machine's).",
    ),
]
_Job = Annotated[
    str, typer.Argument(metavar="JOB", help="A job's id, or a run's name (then its newest job).")
]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
_Many = list[str] | None


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for name, command in (
        ("submit", submit),
        ("status", status),
        ("logs", logs),
        ("stop", stop),
        ("list", list_jobs),
    ):
        app.command(name)(command)


def submit(
    config_file: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")],
    overrides: Annotated[_Many, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.")] = None,
    address: _Address = None,
    follow: Annotated[bool, typer.Option(help="Show the job's log until it ends.")] = True,
    supervise: Annotated[
        bool,
        typer.Option("--supervise", help="Follow, and submit again what was lost; it resumes."),
    ] = False,
    max_failures: Annotated[int, typer.Option(min=0, help="With --supervise: tries after a failure.")] = 3,
    max_preemptions: Annotated[
        int, typer.Option(min=0, help="With --supervise: tries after the driver was lost with its node.")
    ] = 20,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Move an earlier run of this name aside and start anew.")
    ] = False,
    exclude: Annotated[
        _Many, typer.Option(metavar="PATTERN", help="Files that are not to travel, such as '*.ckpt'.")
    ] = None,
    env: Annotated[
        _Many, typer.Option(metavar="NAME=VALUE", help="For the job's environment. Ray shows it: no keys.")
    ] = None,
    key: Annotated[
        _Many,
        typer.Option(metavar="NAME", help="Variable of this environment to send sealed (docs/cluster.md)."),
    ] = None,
    send_keys: Annotated[
        bool,
        typer.Option(
            "--keys/--no-keys", help="Whether W&B and Hugging Face keys found here are sent, sealed."
        ),
    ] = True,
    driver_cpus: Annotated[float, typer.Option(min=0, help="Reserved for the driver.")] = 0.0,
    driver_resource: Annotated[_Many, typer.Option(metavar="NAME=AMOUNT", help="The same.")] = None,
    driver_label: Annotated[
        _Many, typer.Option(metavar="LABEL=VALUE", help="Of the node that the driver is to run on.")
    ] = None,
    checks: Annotated[
        bool, typer.Option("--check/--no-check", help="Whether to look for mistakes here before submitting.")
    ] = True,
) -> None:
    """Train on a Ray cluster, as a job: it goes on when this command ends.

    For example:
      python launch.py submit configs/demo.yaml --address http://head:8265
      python launch.py submit configs/demo.yaml seed=1 name=demo-1 --no-follow
      python launch.py submit configs/demo.yaml --supervise --max-preemptions 50

    The working directory travels (what git ignores does not), so that the cluster runs this code and finds this
    data. The run directory is on the cluster: `directory` must be on storage that all its nodes see.
    """
    config = _checked(config_file, overrides or [], checks)
    address = address or config.cluster.address
    with _explained(address):
        from cluster.commands.jobs.package import package
        from cluster.commands.jobs.sending_keys import found_keys
        from cluster.commands.jobs.submission import (
            DriverPlace,
            Submission,
            cluster_overrides,
            environment,
            labels,
            resources,
        )

        submission = Submission(
            config,
            package(Path.cwd(), config_file, exclude or []),
            cluster_overrides(config, overrides or []),
            environment(env or []),
            found_keys(config, key or []) if send_keys or key else {},
            DriverPlace(driver_cpus, resources(driver_resource or []), labels(driver_label or [])),
            fresh,
        )
        server = _server(address)
        job = _sent(server, submission)
        if supervise or follow:
            _attend(server, submission, job, (max_failures, max_preemptions) if supervise else (0, 0))
        else:
            _say(_how_to_go_on(job))


def _sent(server: JobServer, submission: Submission) -> str:
    """Submits, sends the keys after it, and says what it does. Returns the job's id."""
    from cluster.commands.jobs.sending_keys import send_keys
    from cluster.commands.jobs.submission import refuse_live_run
    from cluster.commands.jobs.submission import submit as submit_job

    config = submission.config
    refuse_live_run(server, config.name)
    _say(f"sending {len(submission.package.files)} files, {submission.package.size / 2**20:.1f} MiB")
    job = submit_job(server, submission)
    _say(f"job {job} is the run {config.name}, in {config.run_directory} on the cluster")
    if submission.keys:
        send_keys(server, job, submission.keys)
        _say(f"sent {', '.join(sorted(submission.keys))}, sealed")
    elif config.tracking.wandb in ("auto", "online"):
        _say("no W&B key was sent; unless the cluster has one, the run is logged into its directory")
    return job


def status(job: _Job, address: _Address = None, as_json: _AsJson = False) -> None:
    """Show how a job is doing.

    For example:
      python launch.py status demo --address http://head:8265
    """
    with _explained(address):
        details = _server(address).find(job)
    if as_json:
        typer.echo(json.dumps(_as_row(details)))
        return
    for name, value in _as_row(details).items():
        if value is not None:
            typer.echo(f"{name:<14} {plain_text(str(value))}")


def logs(
    job: _Job,
    address: _Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
) -> None:
    """Show the log of a job's driver. The actors' logs are in the run directory.

    For example:
      python launch.py logs demo --address http://head:8265
      python launch.py logs demo --follow      re-attaches; Ctrl-C leaves the job alone
    """
    with _explained(address):
        server = _server(address)
        found = server.find(job).submission_id
        assert found is not None, "only submitted jobs are found"
        if follow:
            _end_with(_attached(found, lambda: _follow(server, found)))
        else:
            _write(plain_text(server.log(found)))


def stop(job: _Job, address: _Address = None) -> None:
    """End a job as Ctrl-C ends a run: it can be resumed by submitting it again.

    For example:
      python launch.py stop demo --address http://head:8265
    """
    with _explained(address):
        from cluster.commands.jobs.server import has_ended

        server = _server(address)
        details = server.find(job)
        found = details.submission_id
        assert found is not None, "only submitted jobs are found"
        if has_ended(details):
            refuse(f"job {found} has ended already ({details.status.value.lower()})")
        server.stop(found)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while not has_ended(details := server.details(found)):
            if time.monotonic() > deadline:
                refuse(
                    f"job {found} was told to stop, and has not within {STOP_TIMEOUT_S:g} s; launch.py logs {found}"
                )
            time.sleep(0.5)
    _say(
        f"job {found} is {details.status.value.lower()}; submitted again, the run goes on from its last checkpoint"
    )


def list_jobs(
    address: _Address = None,
    as_json: _AsJson = False,
    everything: Annotated[bool, typer.Option("--all", help="Also jobs that are no runs of ours.")] = False,
) -> None:
    """List the jobs of a cluster, the newest last.

    For example:
      python launch.py list --address http://head:8265
    """
    with _explained(address):
        from cluster.commands.jobs.server import run_of

        found = [job for job in _server(address).jobs() if everything or run_of(job)]
    if as_json:
        typer.echo(json.dumps([_as_row(job) for job in found]))
        return
    table = Table(box=None, pad_edge=False, header_style="cyan")
    for heading in ("job", "run", "status", "started", "took"):
        table.add_column(heading, no_wrap=True)
    for job in found:
        row = _as_row(job)
        table.add_row(
            *(plain_text(str(row[key] or "")) for key in ("job", "run", "status", "started", "took"))
        )
    Console(highlight=False).print(table if found else "no jobs")


def _checked(config_file: Path, overrides: list[str], checks: bool) -> RunConfig:
    loaded = load_config(config_file, overrides)
    problems = list(loaded.problems)
    if checks and loaded.readable:
        elsewhere = loaded.config.cluster.model_copy(update={"address": "the cluster"})
        problems += preflight(loaded.config.model_copy(update={"cluster": elsewhere}))
    if problems:
        refuse(*problems)
    return loaded.config


def _server(address: str | None) -> JobServer:
    from cluster.commands.jobs.server import JobServer

    return JobServer(address or "auto")


@contextmanager
def _explained(address: str | None) -> Iterator[None]:
    """What cannot be done at the cluster is a line and exit code 2. To be entered before Ray is imported."""
    if address is None or address == "auto":
        send_token_to("localhost:0")
    else:
        send_token_to(urlsplit(address).netloc or address)

    from cluster.commands.jobs.package import PackageRefusedError
    from cluster.commands.jobs.server import JobServerError
    from cluster.commands.jobs.submission import SubmissionRefusedError

    try:
        yield
    except (JobServerError, SubmissionRefusedError, PackageRefusedError) as error:
        refuse(error)


def _attend(server: JobServer, submission: Submission, job: str, budgets: tuple[int, int]) -> None:
    """Follow the run to its end, over as many jobs as the budgets allow, and exit as it did."""
    from cluster.commands.jobs.resubmission import Budgets
    from cluster.commands.jobs.supervising import supervise

    _end_with(
        _attached(job, lambda: supervise(server, submission, job, Budgets(*budgets), _write, _say).value)
    )


def _follow(server: JobServer, job: str) -> str:
    from cluster.commands.jobs.following import follow
    from cluster.commands.jobs.resubmission import ending_of

    details = follow(server, job, _write)
    return ending_of(details.status.value, details.driver_exit_code, details.error_type).value


def _attached(job: str, watch: Callable[[], str]) -> str:
    """What `watch` returns; Ctrl-C ends the watching alone."""
    try:
        return watch()
    except KeyboardInterrupt:
        _say(f"\nno longer watching; {_how_to_go_on(job)}")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _end_with(ending: str) -> None:
    from cluster.commands.jobs.resubmission import Ending

    if ending != Ending.DONE.value:
        _say(f"the run is not finished: {ending}")
        raise typer.Exit(EXIT_INTERRUPTED if ending == Ending.STOPPED.value else EXIT_FAILED)


def _how_to_go_on(job: str) -> str:
    return f"the job goes on: launch.py logs {job} --follow, launch.py stop {job}"


def _as_row(job: JobDetails) -> dict[str, Any]:
    """What is said of a job. Not its environment: that may be long, and is nobody's business."""
    started, ended = job.start_time, job.end_time
    metadata = job.metadata or {}
    message = (job.message or "").strip().splitlines()
    return {
        "job": job.submission_id,
        "run": metadata.get("run"),
        "status": job.status.value.lower(),
        "started": _moment(started),
        "took": _span((ended or time.time() * 1000) - started) if started else None,
        "run_directory": metadata.get("run_directory"),
        "driver_node": job.driver_node_id,
        "exit_code": job.driver_exit_code,
        "message": message[-1][:300] if message else None,
        "command": job.entrypoint,
    }


def _moment(milliseconds: int | None) -> str | None:
    return f"{datetime.fromtimestamp(milliseconds / 1000):%Y-%m-%d %H:%M:%S}" if milliseconds else None


def _span(milliseconds: float) -> str:
    from cluster.tracking.formats import duration

    return duration(milliseconds / 1000)


def _write(text: str) -> None:
    typer.echo(text, nl=False)


def _say(text: str) -> None:
    """About the job, beside its log: on stderr."""
    typer.echo(text, err=True)
