"""Ranks find each other at a port that nobody can take from them, and who does not come is named."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import psutil
import pytest

from cluster.core.network import interface_of, use_interface_of
from learner.engine.rendezvous import join_store, meet, open_store

ADDRESS = "127.0.0.1"


def test_the_port_is_taken_from_the_moment_it_is_known() -> None:
    """There is no time between choosing it and using it: nobody else can open it, and who meets there meets ranks."""
    store = open_store(ADDRESS)
    with pytest.raises(OSError, match="in use"):
        socket.create_server((ADDRESS, store.port))
    other = join_store(ADDRESS, store.port, timeout_s=10)
    with ThreadPoolExecutor(2) as pool:
        for arrival in [pool.submit(meet, each, rank, 2, 10) for rank, each in enumerate([store, other])]:
            arrival.result(timeout=20)


def test_a_port_that_is_busy_is_never_chosen() -> None:
    stores = [open_store(ADDRESS) for _ in range(20)]
    assert len({store.port for store in stores}) == 20


def test_it_listens_at_this_address_alone() -> None:
    store = open_store(ADDRESS)
    process = psutil.Process()
    (listening,) = [
        connection.laddr
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == store.port
    ]
    assert listening.ip == ADDRESS


def test_who_does_not_come_is_named() -> None:
    store = open_store(ADDRESS)
    store.set("arrived/2", "")
    with pytest.raises(TimeoutError, match=r"rank\(s\) \[1, 3\] did not come .* within 0\.2 s"):
        meet(store, 0, 4, timeout_s=0.2)


def test_gloo_and_nccl_talk_over_the_interface_with_the_nodes_address() -> None:
    loopback = interface_of(ADDRESS)
    assert loopback is not None
    assert use_interface_of(ADDRESS, {}) == {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}


def test_what_was_set_stays() -> None:
    assert use_interface_of(ADDRESS, {"GLOO_SOCKET_IFNAME": "eth7"}).keys() == {"NCCL_SOCKET_IFNAME"}


def test_an_address_that_is_not_this_machines_changes_nothing() -> None:
    """As in a container whose address is translated."""
    with patch("psutil.net_if_addrs", return_value={}):
        assert use_interface_of("192.0.2.1", {}) == {}
