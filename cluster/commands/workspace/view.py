"""Define a W&B workspace from the catalogue of metrics, and save it with a deadline.

The key is the one that W&B's own commands use. The user is never prompted for it.
"""

from __future__ import annotations

import os
from concurrent.futures import Future
from threading import Thread
from typing import Any

import wandb
import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as workspaces
from wandb.sdk.lib.service.service_connection import WandbApiFailedError
from wandb_workspaces import expr
from wandb_workspaces._graphql import execute_graphql

from cluster.metrics.catalogue import SECTIONS
from cluster.metrics.entries import Section
from cluster.tracking import wandb_process
from cluster.tracking.wandb_process import exit_hooks_kept, unreachable

NAME = "hpo-trainer"
STEP = "step"
"""The x axis of all charts, under which `WandbSink` logs each row."""
COLUMNS = 3
REQUEST_TIMEOUT_S = 15
"""The timeout of one request, unless WANDB_HTTP_TIMEOUT sets another."""
DEADLINE_S = 60.0
END_TIMEOUT_S = 5.0
VIEW = "nw-hpotrainer-v"
"""W&B's name of the view, by which it is found again. Its address ends in `?nw=hpotrainer`."""
FIND_VIEW = """
query View($entity: String, $project: String, $view: String) {
    project(name: $project, entityName: $entity) {
        allViews(viewType: "project-view", viewName: $view) { edges { node { id } } }
    }
}
"""


class WorkspaceNotSavedError(RuntimeError):
    """W&B did not save the workspace. The message is one line with the reason and the remedy."""


def definition(entity: str, project: str, group_by: str | None = None) -> workspaces.Workspace:
    """Return the unsaved view of `entity`'s `project`, without any request to W&B.

    Args:
        entity: A user or a team of W&B.
        project: The project, as in `tracking.wandb_project`.
        group_by: A setting, such as `objective.name`. Runs with the same value become one line, their mean.
    """
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[_section(section) for section in SECTIONS],
        settings=workspaces.WorkspaceSettings(x_axis=STEP),
        runset_settings=workspaces.RunsetSettings(groupby=[expr.Config(group_by)] if group_by else []),
    )


def _section(section: Section) -> workspaces.Section:
    charts = [panels.LinePlot(title=chart.title, x=STEP, y=list(chart.keys)) for chart in section.charts]
    return workspaces.Section(
        name=section.title,
        panels=charts,
        is_open=True,
        layout_settings=workspaces.SectionLayoutSettings(columns=COLUMNS, rows=-(-len(charts) // COLUMNS)),
        panel_settings=workspaces.SectionPanelSettings(x_axis=STEP),
    )


def save(project: str, group_by: str | None = None) -> str:
    """Create the view, or update the existing one. Return its address.

    Raises:
        WorkspaceNotSavedError: if no key is configured, if W&B does not accept it, cannot be reached or does not answer
            within `DEADLINE_S`, or if the project does not exist.
    """
    os.environ.setdefault("WANDB_HTTP_TIMEOUT", str(REQUEST_TIMEOUT_S))
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # otherwise telemetry delays the exit
    # This command takes precedence over WANDB_MODE.
    settings = wandb.Settings(silent=True, quiet=True, mode="online")
    with exit_hooks_kept():
        wandb.setup(settings)
    server = wandb.setup().settings.base_url
    saving: Future[str] = Future()

    def work() -> None:
        try:
            saving.set_result(_save(server, project, group_by))
        except BaseException as error:
            saving.set_exception(error)

    Thread(target=work, name="save the workspace", daemon=True).start()
    try:
        return saving.result(DEADLINE_S)
    except TimeoutError:
        wandb_process.kill()
        raise WorkspaceNotSavedError(
            f"{server} did not answer within {DEADLINE_S:g} s; try again later"
        ) from None
    finally:
        wandb_process.end(END_TIMEOUT_S)


def _save(server: str, project: str, group_by: str | None) -> str:
    api = _logged_in(server)
    try:
        entity = api.settings["entity"] or api.default_entity
        found = execute_graphql(api, FIND_VIEW, {"entity": entity, "project": project, "view": VIEW})
        if found["project"] is None:
            raise WorkspaceNotSavedError(
                f"{server} has no project {entity}/{project}: the first run that is logged online, or `wandb sync`, "
                "creates it; tracking.wandb_project names another project, and WANDB_ENTITY another owner"
            )
        workspace = definition(entity, project, group_by)
        # The library finds a view only by its address, and then must understand everything in it.
        workspace._internal_name = VIEW
        workspace._internal_id = next(
            (edge["node"]["id"] for edge in found["project"]["allViews"]["edges"]), ""
        )
        workspace.save()
        address: str = workspace.url
        return address
    except (wandb.errors.Error, WandbApiFailedError) as error:
        raise WorkspaceNotSavedError(f"{server} did not save the workspace: {_one_line(error)}") from error


def _logged_in(server: str) -> Any:
    """Return W&B's own client after its key has been accepted.

    Raises:
        WorkspaceNotSavedError: if no key is configured, or it cannot be verified.
    """
    try:
        configured = wandb.login(prompt=False, verify=False)
    except (wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
        raise WorkspaceNotSavedError(
            f"the W&B API key is malformed ({_one_line(error)}): run wandb login --relogin"
        ) from error
    if not configured:
        raise WorkspaceNotSavedError(
            f"no API key for {server} is configured: run wandb login, or set WANDB_API_KEY"
        )
    if trouble := unreachable(server):
        raise WorkspaceNotSavedError(
            f"{server} cannot be reached ({trouble}): try again later; WANDB_BASE_URL names a different server"
        )
    try:
        return wandb.Api()
    except (wandb.errors.Error, WandbApiFailedError) as error:
        if getattr(error.__cause__, "response", None) is None:  # the error does not come from the server
            raise WorkspaceNotSavedError(
                f"{server} did not verify the API key ({_one_line(error)}): try again later"
            ) from error
        raise WorkspaceNotSavedError(
            f"{server} does not accept the API key ({_one_line(error)}): run wandb login --relogin"
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
