"""Python's garbage collector, kept from looking where there is nothing to find."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def what_is_there_stays() -> Iterator[None]:
    """While the block runs, nothing that was there at its beginning is looked through. A large batch causes several
    full collections, and each would go through all modules and prompts: 0.2 s in which the controller does nothing."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()  # else extension modules complain at the end of the process that their objects were leaked
