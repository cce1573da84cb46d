"""Ray's authentication token. Call this before Ray is imported, because Ray reads its environment once, at import.

`ray.init()` makes a new cluster require a token, but sends the token to a given address only with RAY_AUTH_MODE=token,
so that no foreign cluster receives it by mistake. An address of this machine is safe, so the mode is set for it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

from cluster.core.addresses import AddressError, parse_address

MODE_VARIABLE = "RAY_AUTH_MODE"
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
TOKEN_FILE = "~/.ray/auth_token"
_SOCKETS = ("/proc/net/tcp", "/proc/net/tcp6")
_LISTENING = "0A"


def send_token_to(address: str) -> None:
    """Let Ray send its token to `address` if that is this machine, a token exists, RAY_AUTH_MODE is not set, and no
    other user listens there, perhaps since the cluster has ended."""
    try:
        parsed = parse_address(address)
    except AddressError:
        return
    if (
        MODE_VARIABLE not in os.environ
        and _has_token()
        and _is_this_machine(parsed.host)
        and (parsed.port is None or listeners(parsed.port) <= {os.geteuid()})
    ):
        os.environ[MODE_VARIABLE] = "token"


def send_token_anywhere() -> None:
    """Let Ray send its token to whatever address it connects to, because the user asks for it. Without a token, Ray
    would refuse to connect."""
    if _has_token():
        os.environ[MODE_VARIABLE] = "token"


def send_no_token() -> None:
    """Let Ray send its token to no address, whatever RAY_AUTH_MODE is. Without this, the address `auto` receives it."""
    os.environ[MODE_VARIABLE] = "disabled"


def listeners(port: int) -> set[int]:
    """Return the ids of the users whose processes listen at a port of this machine."""
    return {user for file in _SOCKETS for user in _listeners(Path(file), port)}


def _listeners(file: Path, port: int) -> Iterator[int]:
    """Yield the users in one of the kernel's tables. `psutil` does not show those of other users' sockets."""
    try:
        lines = file.read_text().splitlines()[1:]
    except OSError:  # a system without the table
        return
    for fields in map(str.split, lines):
        if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
            yield int(fields[7])


def token_sources() -> str:
    """Return the variables and the file in which Ray looks for its token, as text for a message."""
    return f"{', '.join(TOKEN_VARIABLES)} or {TOKEN_FILE}"


def _has_token() -> bool:
    return any(os.environ.get(name) for name in TOKEN_VARIABLES) or Path(TOKEN_FILE).expanduser().is_file()


def _is_this_machine(host: str) -> bool:
    own = {each.address for addresses in psutil.net_if_addrs().values() for each in addresses}
    return host in own | {"localhost", socket.gethostname()}
