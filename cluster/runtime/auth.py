"""Ray's authentication token. Call this before Ray is imported, because Ray reads its environment once, at import.

`ray.init()` makes a new cluster require a token, but sends the token to a given address only with RAY_AUTH_MODE=token,
so that no foreign cluster receives it by mistake. An address of this machine is safe, so the mode is set for it.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import psutil

MODE_VARIABLE = "RAY_AUTH_MODE"
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
TOKEN_FILE = "~/.ray/auth_token"


def send_token_to(address: str) -> None:
    """Let Ray send its token to `address` if that is this machine, a token exists, and RAY_AUTH_MODE is not set."""
    host = address.rpartition(":")[0]
    if MODE_VARIABLE not in os.environ and _has_token() and _is_this_machine(host):
        os.environ[MODE_VARIABLE] = "token"


def token_sources() -> str:
    """Return the variables and the file in which Ray looks for its token, as text for a message."""
    return f"{', '.join(TOKEN_VARIABLES)} or {TOKEN_FILE}"


def _has_token() -> bool:
    return any(os.environ.get(name) for name in TOKEN_VARIABLES) or Path(TOKEN_FILE).expanduser().is_file()


def _is_this_machine(host: str) -> bool:
    own = {each.address for addresses in psutil.net_if_addrs().values() for each in addresses}
    return host in own | {"localhost", socket.gethostname()}
