"""The network interface over which processes on different nodes find each other."""

from __future__ import annotations

import os
from collections.abc import Mapping

import psutil


def use_interface_of(address: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment by which gloo and NCCL talk over the network interface that has `address`.

    Left alone, gloo takes what the host's name means, which on many systems is a loopback address that other nodes
    cannot reach. What `environment` says already stays.
    """
    interface = interface_of(address)
    names = () if interface is None else ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    return {name: interface for name in names if interface is not None and name not in environment}


def interface_of(address: str) -> str | None:
    """The name of the network interface of this machine that has `address`."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(known.address == address for known in addresses):
            return name
    return None
