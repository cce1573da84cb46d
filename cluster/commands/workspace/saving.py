"""Gives a workspace to W&B: with the key that W&B's own commands use, never asking for one, and with a deadline."""

from __future__ import annotations

import os
from concurrent.futures import Future
from threading import Thread
from typing import Any

import wandb
from wandb.sdk.lib.service.service_connection import WandbApiFailedError
from wandb_workspaces._graphql import execute_graphql

from cluster.commands.workspace.definition import definition
from cluster.tracking import wandb_process
from cluster.tracking.wandb_process import exit_hooks_kept, unreachable

REQUEST_TIMEOUT_S = 15
"""Unless WANDB_HTTP_TIMEOUT says otherwise."""
DEADLINE_S = 60.0
END_TIMEOUT_S = 5.0
VIEW = "nw-hpotrainer-v"
"""By this name W&B knows the view, and finds it again; its address ends in `?nw=hpotrainer`."""
FIND_VIEW = """
query View($entity: String, $project: String, $view: String) {
    project(name: $project, entityName: $entity) {
        allViews(viewType: "project-view", viewName: $view) { edges { node { id } } }
    }
}
"""


class WorkspaceNotSavedError(RuntimeError):
    """W&B has not taken the workspace; says why, and what to do, in one line."""


def save(project: str, group_by: str | None = None) -> str:
    """Make the view, or bring the one that is there up to date. Returns where it is to be looked at.

    Raises:
        WorkspaceNotSavedError: there is no key, W&B does not accept it, cannot be reached or does not answer within
            `DEADLINE_S`, or has no such project.
    """
    os.environ.setdefault("WANDB_HTTP_TIMEOUT", str(REQUEST_TIMEOUT_S))
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else its telemetry holds up the end
    # What was asked for here beats WANDB_MODE.
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
            f"{server} has not answered within {DEADLINE_S:g} s: try again"
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
                "makes it; tracking.wandb_project names another, and WANDB_ENTITY another owner"
            )
        workspace = definition(entity, project, group_by)
        # The library itself finds a view by its address alone, and then insists on understanding all that is in it.
        workspace._internal_name = VIEW
        workspace._internal_id = next(
            (edge["node"]["id"] for edge in found["project"]["allViews"]["edges"]), ""
        )
        workspace.save()
        return workspace.url
    except (wandb.errors.Error, WandbApiFailedError) as error:
        raise WorkspaceNotSavedError(f"{server} has not taken the workspace: {_one_line(error)}") from error


def _logged_in(server: str) -> Any:
    """W&B's own client, whose key has been accepted.

    Raises:
        WorkspaceNotSavedError: there is none, and why.
    """
    try:
        configured = wandb.login(prompt=False, verify=False)
    except (wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
        raise WorkspaceNotSavedError(
            f"the W&B API key is malformed: {_one_line(error)}; wandb login --relogin"
        ) from error
    if not configured:
        raise WorkspaceNotSavedError(
            f"no API key of {server} is configured: wandb login, or set WANDB_API_KEY"
        )
    if trouble := unreachable(server):
        raise WorkspaceNotSavedError(
            f"{server} cannot be reached ({trouble}): try again where it can be; WANDB_BASE_URL names another server"
        )
    try:
        return wandb.Api()
    except (wandb.errors.Error, WandbApiFailedError) as error:
        if getattr(error.__cause__, "response", None) is None:  # it is not the server that says so
            raise WorkspaceNotSavedError(
                f"{server} has not verified the API key ({_one_line(error)}): try again"
            ) from error
        raise WorkspaceNotSavedError(
            f"{server} does not accept the API key ({_one_line(error)}): wandb login --relogin"
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
