"""The command line of the jobs: submit, status, logs, stop and list."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cluster.commands.exits import EXIT_BROKEN_PIPE, EXIT_FAILED, EXIT_INTERRUPTED, exit_code_of, refuse
from cluster.commands.option_types import address as an_address
from cluster.commands.option_types import number
from cluster.commands.options import JOBS_PANEL, AsJson, ConfigFile, Fresh, Overrides
from cluster.configuration.loading import load_config
from cluster.configuration.preflight import preflight
from cluster.core.config import RunConfig
from cluster.core.schema import CountOrZero, NotNegative
from cluster.core.text import plain_text
from cluster.runtime.auth import send_token_to
from cluster.runtime.signals import answer_signals

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

    from cluster.commands.jobs.server import JobServer
    from cluster.commands.jobs.submission import Submission

STOP_TIMEOUT_S = 120.0
_Many = list[str] | None
_Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        parser=an_address,
        envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"],
        help="Cluster: http://HOST:8265 of its head node, HOST:6379, or auto (on this machine).",
    ),
]
_Job = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job, or name of a run (its newest job).")]
_Follow = Annotated[bool, typer.Option(help="Show the log of the job until it ends.")]
_Supervise = Annotated[
    bool,
    typer.Option("--supervise", help="Follow the run; if a job is lost, submit the next, which resumes."),
]
_MaxFailures = Annotated[
    int,
    typer.Option(
        metavar="INTEGER",
        parser=number(CountOrZero),
        help="With --supervise: number of new jobs after failures.",
    ),
]
_MaxPreemptions = Annotated[
    int,
    typer.Option(
        metavar="INTEGER",
        parser=number(CountOrZero),
        help="With --supervise: number of new jobs after the driver's node was lost.",
    ),
]
_Exclude = Annotated[
    _Many, typer.Option(metavar="PATTERN", help="Files that are not sent, such as '*.ckpt'.")
]
_Env = Annotated[
    _Many, typer.Option(metavar="NAME=VALUE", help="Variable of the job. Ray shows it to others: no keys.")
]
_Key = Annotated[
    _Many, typer.Option(metavar="NAME", help="Variable of this environment to send sealed (docs/cluster.md).")
]
_SendKeys = Annotated[
    bool, typer.Option("--keys/--no-keys", help="Send the W&B and Hugging Face keys found here, sealed.")
]
_DriverCpus = Annotated[
    float,
    typer.Option(metavar="FLOAT", parser=number(NotNegative), help="CPUs to reserve for the driver."),
]
_DriverResource = Annotated[
    _Many, typer.Option(metavar="NAME=AMOUNT", help="Custom resource to reserve for the driver.")
]
_DriverLabel = Annotated[
    _Many, typer.Option(metavar="LABEL=VALUE", help="Label of the node that the driver runs on.")
]
_Check = Annotated[bool, typer.Option("--check/--no-check", help="Validate the configuration here first.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for name, command in (
        ("submit", submit),
        ("status", status),
        ("logs", logs),
        ("stop", stop),
        ("list", list_jobs),
    ):
        app.command(name, rich_help_panel=JOBS_PANEL)(command)


def submit(
    config_file: ConfigFile,
    overrides: Overrides = None,
    address: _Address = None,
    follow: _Follow = True,
    supervise: _Supervise = False,
    max_failures: _MaxFailures = 3,
    max_preemptions: _MaxPreemptions = 20,
    fresh: Fresh = False,
    exclude: _Exclude = None,
    env: _Env = None,
    key: _Key = None,
    send_keys: _SendKeys = True,
    driver_cpus: _DriverCpus = 0.0,
    driver_resource: _DriverResource = None,
    driver_label: _DriverLabel = None,
    checks: _Check = True,
) -> None:
    """Train on a Ray cluster, as a job that outlives this command.

    Examples:
      python launch.py submit configs/demo.yaml --address http://head:8265
      python launch.py submit configs/demo.yaml seed=1 name=demo-1 --no-follow
      python launch.py submit configs/demo.yaml --supervise --max-preemptions 50

    The working directory is sent along (except files that git ignores), so the
    cluster runs this code and finds this data. The run directory is on the
    cluster: `directory` must be on storage that all its nodes share.
    """
    config = _checked(config_file, overrides or [], checks)
    address = address or config.cluster.address
    with _explained(address):
        from cluster.commands.jobs import submission as jobs
        from cluster.commands.jobs.package import package
        from cluster.commands.jobs.supervision_lock import supervision_lock

        submission = jobs.Submission(
            config,
            package(Path.cwd(), config_file, exclude or []),
            jobs.cluster_overrides(config, overrides or []),
            jobs.environment(env or []),
            jobs.found_keys(config, key or []) if send_keys or key else {},
            jobs.DriverPlacement(
                driver_cpus, jobs.resources(driver_resource or []), jobs.labels(driver_label or [])
            ),
            fresh,
        )
        server = _server(address)
        with supervision_lock(server.address, config) if supervise else nullcontext():
            job = _submitted(server, submission)
            if supervise or follow:
                _supervise(server, submission, job, (max_failures, max_preemptions) if supervise else (0, 0))
            else:
                _say(_next_commands(job))


def _submitted(server: JobServer, submission: Submission) -> str:
    """Submit the run, send the keys after it, and report both. Return the id of the job."""
    from cluster.commands.jobs.submission import refuse_live_run, send_keys
    from cluster.commands.jobs.submission import submit as submit_job

    config = submission.config
    refuse_live_run(server, config.name)
    _say(f"sending {len(submission.package.files)} files, {submission.package.size / 2**20:.1f} MiB")
    for note in submission.package.notes:
        _say(note)
    job = submit_job(server, submission)
    _say(f"job {job} trains the run {config.name}, in {config.run_directory} on the cluster")
    if submission.keys:
        send_keys(server, job, submission.keys)
        _say(f"sent {', '.join(sorted(submission.keys))}, sealed")
    elif config.tracking.wandb in ("auto", "online"):
        _say("sent no W&B key; unless the cluster has one, W&B's files are written to the run directory only")
    return job


def status(job: _Job, address: _Address = None, as_json: AsJson = False) -> None:
    """Show the status of a job.

    Examples:
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
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Continue to show the log until the job ends.")
    ] = False,
) -> None:
    """Show the log of a job's driver.

    The logs of the actors are in the run directory.

    Examples:
      python launch.py logs demo --address http://head:8265
      python launch.py logs demo --follow      Ctrl-C ends only the watching
    """
    with _explained(address):
        server = _server(address)
        found = server.find(job).submission_id
        assert found is not None, "only submitted jobs are found"
        if follow:
            _exit_as(_watched(found, lambda: _follow(server, found)))
        else:
            _write(plain_text(server.log(found)))


def stop(job: _Job, address: _Address = None) -> None:
    """Stop a job, as Ctrl-C does. Submitting it again resumes the run.

    Examples:
      python launch.py stop demo --address http://head:8265
    """
    with _explained(address):
        from cluster.commands.jobs.server import has_ended

        server = _server(address)
        details = server.find(job)
        found = details.submission_id
        assert found is not None, "only submitted jobs are found"
        if has_ended(details):
            refuse(f"job {found} has already ended ({details.status.value.lower()})")
        server.stop(found)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while not has_ended(details := server.details(found)):
            if time.monotonic() > deadline:
                refuse(
                    f"job {found} did not stop within {STOP_TIMEOUT_S:g} s; launch.py logs {found} shows what it does"
                )
            time.sleep(0.5)
    _say(
        f"job {found} is {details.status.value.lower()}; submitting it again resumes the run from its last checkpoint"
    )


def list_jobs(
    address: _Address = None,
    as_json: AsJson = False,
    everything: Annotated[bool, typer.Option("--all", help="Include the jobs of other programs.")] = False,
) -> None:
    """List the jobs of a cluster, the newest last.

    Examples:
      python launch.py list --address http://head:8265
    """
    with _explained(address):
        from cluster.commands.jobs.server import run_of

        found = [job for job in _server(address).jobs() if everything or run_of(job)]
    if as_json:
        typer.echo(json.dumps([_as_row(job) for job in found]))
        return
    table = Table(box=None, pad_edge=False, header_style="cyan")
    columns = {"job": "job", "run": "run", "status": "status", "started": "started", "took": "duration"}
    for heading in columns.values():
        table.add_column(heading, no_wrap=True)
    for job in found:
        row = _as_row(job)
        table.add_row(*(plain_text(str(row[key] or "")) for key in columns))
    Console(highlight=False).print(table if found else "no jobs")


def _checked(config_file: Path, overrides: list[str], checks: bool) -> RunConfig:
    """Return the configuration, or print every problem and exit. The resources of this machine are not checked."""
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
    """Translate failures of the cluster into one line and exit code 2. Must be entered before Ray is imported."""
    if address is None or address == "auto":
        send_token_to("http://localhost")
    else:
        send_token_to(address)

    from cluster.commands.jobs.package import PackageRefusedError
    from cluster.commands.jobs.server import JobServerError
    from cluster.commands.jobs.submission import SubmissionRefusedError

    try:
        yield
    except (JobServerError, SubmissionRefusedError, PackageRefusedError) as error:
        refuse(error)


def _supervise(server: JobServer, submission: Submission, job: str, budgets: tuple[int, int]) -> None:
    """Follow the run to its end, over as many jobs as the budgets allow, and exit as it did."""
    from cluster.commands.jobs.supervision import Budgets, supervise

    _exit_as(_watched(job, lambda: supervise(server, submission, job, Budgets(*budgets), _write, _say).value))


def _follow(server: JobServer, job: str) -> str:
    from cluster.commands.jobs.supervision import ending_of, follow

    details = follow(server, job, _write_or_end)
    return ending_of(details.status.value, details.driver_exit_code, details.error_type).value


def _watched(job: str, watch: Callable[[], str]) -> str:
    """Return the result of `watch`. Ctrl-C, SIGTERM and SIGHUP end only the watching, and the job continues."""
    answer_signals()
    try:
        return watch()
    except KeyboardInterrupt as interruption:
        _say(f"\nstopped watching; {_next_commands(job)}")
        raise typer.Exit(exit_code_of(interruption)) from None


def _exit_as(ending: str) -> None:
    """Exit with the code of a run that ended in this way."""
    from cluster.commands.jobs.supervision import Ending

    if ending != Ending.DONE.value:
        _say(f"the run is not finished: {ending}")
        raise typer.Exit(EXIT_INTERRUPTED if ending == Ending.STOPPED.value else EXIT_FAILED)


def _next_commands(job: str) -> str:
    return (
        f"the job continues: launch.py logs {job} --follow shows its log, and launch.py stop {job} stops it"
    )


def _as_row(job: JobDetails) -> dict[str, Any]:
    """Return the public facts about a job, without its environment, which may be long and private."""
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


def _write_or_end(text: str) -> None:
    """Write a part of a log. Without a reader (`| head`) the command ends, because it does nothing else."""
    _write(text)
    if getattr(sys.stdout, "lost", None):
        raise typer.Exit(EXIT_BROKEN_PIPE)


def _say(text: str) -> None:
    """Print a message about the job on stderr. Its log goes to stdout."""
    typer.echo(text, err=True)
