"""Another process of this machine, whose end is noticed at once, however it ends.

identity = own_process()            # in the one process, a text that it tells the other
peer = PeerProcess(identity)        # in the other
peer.ended
peer.close()
"""

from __future__ import annotations

import os
import select


def own_process() -> str:
    """Return the identity of this process among those of its machine or container."""
    return f"{os.readlink('/proc/self/ns/pid')}/{os.getpid()}"


class PeerProcess:
    """The process with this identity, which must not have ended long ago. A process of another container is unknown
    here, and never seen to end."""

    def __init__(self, identity: str) -> None:
        namespace, _, number = identity.rpartition("/")
        self._descriptor: int | None = None
        self._was_gone = False
        if namespace != own_process().rpartition("/")[0]:
            return
        try:
            self._descriptor = os.pidfd_open(int(number))
        except ProcessLookupError:
            self._was_gone = True

    @property
    def ended(self) -> bool:
        """True if the process has ended, even if its parent has not noticed."""
        if self._descriptor is None:
            return self._was_gone
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Stop watching. The process is not affected."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
