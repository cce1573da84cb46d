"""Is anybody there? Ray tries for minutes to reach a cluster that is gone. Ray-free."""

from __future__ import annotations

import socket

PROBE_TIMEOUT_S = 10.0


def probe(address: str) -> None:
    """Return at once if somebody listens at `HOST:PORT`. Other forms of address, such as `auto`, are let through.

    Raises:
        OSError: nobody does.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        with socket.create_connection((host, int(port)), timeout=PROBE_TIMEOUT_S):
            pass
