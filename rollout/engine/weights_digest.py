"""A digest of the parameters that an engine holds: exact evidence that weights have arrived as they were sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping


def digest_of(processes: Iterable[Mapping[str, str]]) -> str:
    """Return the digest of an engine, given the checksums of each of its processes, by name of the parameter.

    vLLM's names contain the rank of the process, so the order of the processes does not matter. Digests of engines on
    different devices cannot be compared: for some kernels vLLM packs weights.
    """
    checksums = sorted(item for process in processes for item in process.items())
    return hashlib.sha256(json.dumps(checksums).encode()).hexdigest()
