"""A Hugging Face hub on this machine with one private model, which is served to clients with the token only."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REPOSITORY = "organization/private"
COMMIT = "0123456789abcdef" * 2 + "01234567"
CONFIG = b'{"model_type": "llama"}'


@contextmanager
def hub(token: str) -> Iterator[str]:
    """Serve the hub while the block runs. Yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            status, content = 404, b""
            match self.path.partition("?")[0].removeprefix("/api/models/").split("/"):
                case _ if self.headers["Authorization"] != f"Bearer {token}":
                    status = 401
                case ["organization", "private"] | ["organization", "private", "revision", _]:
                    status, content = 200, encoded({"id": REPOSITORY, "sha": COMMIT, "siblings": []})
                case ["organization", "private", "tree", _]:
                    file = {"type": "file", "oid": COMMIT, "size": len(CONFIG), "path": "config.json"}
                    status, content = 200, encoded([file])
                case ["", "organization", "private", "resolve", _, "config.json"]:
                    status, content = 200, CONFIG
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{COMMIT}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()
