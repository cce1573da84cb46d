"""A Hugging Face hub on this machine. Private repositories are served to clients with the token only."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef" * 2 + "01234567"

Files = Mapping[str, bytes]
"""The contents of the files of a repository by their paths."""


@dataclass(frozen=True)
class Reply:
    """A status and a body. `code` tells clients which part of the address does not exist."""

    status: int
    body: bytes = b""
    code: str | None = None


@contextmanager
def hub(
    models: Mapping[str, Files] | None = None,
    data_sets: Mapping[str, Files] | None = None,
    token: str | None = None,
) -> Iterator[str]:
    """Serve repositories by their ids while the block runs. With a token, all of them are private.

    Yields:
        The address of the hub.
    """
    repositories = {"models": models or {}, "datasets": data_sets or {}}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            allowed = token is None or self.headers["Authorization"] == f"Bearer {token}"
            reply = reply_to(self.path, repositories) if allowed else Reply(401, code="RepoNotFound")
            self.send_response(reply.status)
            self.send_header("Content-Length", str(len(reply.body)))
            self.send_header("ETag", f'"{hashlib.sha256(reply.body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if reply.code is not None:
                self.send_header("X-Error-Code", reply.code)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(reply.body)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def reply_to(url: str, repositories: Mapping[str, Mapping[str, Files]]) -> Reply:
    """Answer a request as the hub does: for a repository, for the files in a directory of it, or for a file."""
    address = urlsplit(url)
    match unquote(address.path).removeprefix("/").split("/"):
        case ["api", kind, owner, name, *request] if kind in repositories:
            files = repositories[kind].get(f"{owner}/{name}")
            match request:
                case _ if files is None:
                    return Reply(404, code="RepoNotFound")
                case [] | ["revision", _]:
                    siblings = [{"rfilename": path} for path in files]
                    return encoded({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings})
                case ["tree", _, *folder]:
                    return tree(files, "/".join(folder), parse_qs(address.query).get("recursive") == ["true"])
        case ["datasets", owner, name, "resolve", _, *path]:
            return content(repositories["datasets"].get(f"{owner}/{name}"), "/".join(path))
        case [owner, name, "resolve", _, *path]:
            return content(repositories["models"].get(f"{owner}/{name}"), "/".join(path))
    return Reply(404)


def content(files: Files | None, path: str) -> Reply:
    if files is None:
        return Reply(404, code="RepoNotFound")
    return Reply(200, files[path]) if path in files else Reply(404, code="EntryNotFound")


def tree(files: Files, folder: str, recursive: bool) -> Reply:
    """List the files and directories in a directory of a repository."""
    start = f"{folder}/" if folder else ""
    below = {path.removeprefix(start): body for path, body in files.items() if path.startswith(start)}
    if not below:
        return Reply(404, code="EntryNotFound")
    entries = [file(start + path, body) for path, body in below.items() if recursive or "/" not in path]
    folders = {path.partition("/")[0] for path in below if "/" in path}
    return encoded(
        [*entries, *({"type": "directory", "oid": COMMIT, "path": start + path} for path in folders)]
    )


def file(path: str, body: bytes) -> dict[str, Any]:
    return {"type": "file", "oid": hashlib.sha1(body).hexdigest(), "size": len(body), "path": path}


def encoded(value: Any) -> Reply:
    return Reply(200, json.dumps(value).encode())
