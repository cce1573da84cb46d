"""Simulated machines on this one: network namespaces on one bridge, each with its own address. Creating them usually
requires root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import Self


class NoNamespacesError(RuntimeError):
    """The machine does not allow network namespaces. The message contains the error of `ip`."""


class Network:
    """A bridge with simulated machines.

    Example:
    with Network() as network:
        address = network.add("head")
        subprocess.run([*network.inside("head"), "hostname", "-I"])
    """

    def __init__(self) -> None:
        self._number = os.getpid() % 250 + 1
        self._bridge = f"hpo{self._number}"
        self._names: dict[str, str] = {}
        self.here = self._address(254)
        """The address of this machine on the bridge."""

    def __enter__(self) -> Self:
        try:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("addr", "add", f"{self.here}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def add(self, name: str) -> str:
        """Add a machine and return its address."""
        number = len(self._names) + 1
        space = f"{self._bridge}-{number}"
        outside, inside = f"{self._bridge}o{number}", f"{self._bridge}i{number}"
        self._names[name] = space
        _ip("netns", "add", space)
        _ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", space)
        _ip("link", "set", outside, "master", self._bridge, "up")
        _ip("-n", space, "addr", "add", f"{self._address(number)}/24", "dev", inside)
        for device in (inside, "lo"):
            _ip("-n", space, "link", "set", device, "up")
        return self._address(number)

    def inside(self, name: str) -> Sequence[str]:
        """Return the words to put before a command to run it on the machine `name`."""
        return "ip", "netns", "exec", self._names[name]

    def close(self) -> None:
        for space in self._names.values():
            subprocess.run(["ip", "netns", "del", space], capture_output=True)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True)

    def _address(self, host: int) -> str:
        return f"10.213.{self._number}.{host}"


def _ip(*words: str) -> None:
    try:
        done = subprocess.run(["ip", *words], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise NoNamespacesError("the command `ip` is missing: apt-get install iproute2") from error
    if done.returncode:
        raise NoNamespacesError(f"ip {' '.join(words)}: {done.stderr.strip()}")
