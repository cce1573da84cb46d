"""The network interface through which processes on different nodes communicate."""

from __future__ import annotations

import os
from collections.abc import Mapping

import psutil


def use_interface_of(address: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment variables that make gloo and NCCL use the network interface with `address`.

    By default gloo uses the address of the host name, which on many systems is a loopback address that other nodes
    cannot reach. Variables that `environment` sets already are left out.
    """
    interface = interface_of(address)
    names = () if interface is None else ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    return {name: interface for name in names if interface is not None and name not in environment}


def interface_of(address: str) -> str | None:
    """Return the name of this machine's network interface with `address`; None if no interface has it."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(known.address == address for known in addresses):
            return name
    return None
