"""Ray's token: what a cluster that was started on this machine asks for. To be used before Ray is imported, which
reads its environment then, once.

`ray.init()` makes a new cluster ask for a token. To a given address it sends the token only with RAY_AUTH_MODE=token,
so that nobody is given it by mistake; an address of this machine is no mistake.
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
    """Have Ray send its token to `address`, if that is of this machine, there is a token, and nobody said otherwise."""
    host = address.rpartition(":")[0]
    if MODE_VARIABLE not in os.environ and _has_token() and _is_here(host):
        os.environ[MODE_VARIABLE] = "token"


def token_places() -> str:
    """Where Ray looks for its token, in words."""
    return f"{', '.join(TOKEN_VARIABLES)} or {TOKEN_FILE}"


def _has_token() -> bool:
    return any(os.environ.get(name) for name in TOKEN_VARIABLES) or Path(TOKEN_FILE).expanduser().is_file()


def _is_here(host: str) -> bool:
    own = {each.address for addresses in psutil.net_if_addrs().values() for each in addresses}
    return host in own | {"localhost", socket.gethostname()}
