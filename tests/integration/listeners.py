"""The sockets on which the processes of a run wait for connections."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator

import psutil


def listeners() -> Iterator[tuple[str, str]]:
    """Yield the name of the process and the address of each listening socket of this process and its descendants."""
    this = psutil.Process()
    for process in [this, *this.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in process.net_connections("tcp"):
                if each.status == psutil.CONN_LISTEN:
                    yield process.name(), each.laddr.ip


def reachable_listeners() -> list[tuple[str, str]]:
    """Return those of `listeners` that other machines can reach."""
    return [found for found in listeners() if not is_loopback(found[1])]


def is_loopback(address: str) -> bool:
    """Return True if only this machine reaches `address`, which may be a version 4 address within a version 6 one."""
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback
