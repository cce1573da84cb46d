"""How a key (of W&B, say) reaches a job without Ray ever holding it in the clear.

Ray stores the environment of a job and gives it to everyone who may list jobs, so it is no place for a key. Instead:

    the job     makes a key pair, and writes its public half into its log
    who submits reads it there, seals the keys for it, and sends the sealed box to the cluster's package store
    the job     takes the box away from there and opens it; the keys are in the memory of the driver alone, and that of
                the hub in that of the process which downloads the model (cluster/training/session.py)

A box can be opened by that one process, once (X25519, HKDF-SHA256, ChaCha20-Poly1305; the job's id is authenticated).
Who can run code in the cluster can read a process's memory in any case; who can only list jobs and read logs cannot.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections.abc import Callable, Mapping, MutableMapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEYS_VARIABLE = "HPO_TRAINER_SEALED_KEYS"
"""Names, no values: the job waits for these."""
SENT_BY_DEFAULT = ("WANDB_API_KEY", "HF_TOKEN")
WAIT_S = 120.0
"""How long a job waits for its keys."""
_ANNOUNCEMENT = re.compile(r"^keys of (?P<job>\S+) may be sealed for (?P<public>[A-Za-z0-9+/=]{44})$", re.M)
_PUBLIC_BYTES = 32


def announcement(job: str, private: X25519PrivateKey) -> str:
    """The line in the job's log."""
    public = base64.b64encode(private.public_key().public_bytes_raw()).decode()
    return f"keys of {job} may be sealed for {public}"


def announced(job: str, log: str) -> bytes | None:
    """The public key that a job's log announces; None if it does not yet."""
    found = [match["public"] for match in _ANNOUNCEMENT.finditer(log) if match["job"] == job]
    return base64.b64decode(found[-1]) if found else None


def seal(job: str, keys: Mapping[str, str], public: bytes) -> bytes:
    """A box that only the process of `public` can open."""
    own = X25519PrivateKey.generate()
    shared = own.exchange(X25519PublicKey.from_public_bytes(public))
    own_public = own.public_key().public_bytes_raw()
    # Each box has a secret of its own, so that its nonce need not differ.
    box = _cipher(shared, own_public, public).encrypt(
        bytes(12), json.dumps(dict(keys)).encode(), job.encode()
    )
    return own_public + box


def unseal(job: str, box: bytes, private: X25519PrivateKey) -> dict[str, str]:
    """The keys in a box.

    Raises:
        ValueError: it was sealed for somebody else, or is damaged.
    """
    sender, sealed = box[:_PUBLIC_BYTES], box[_PUBLIC_BYTES:]
    public = private.public_key().public_bytes_raw()
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(sender))
        return json.loads(_cipher(shared, sender, public).decrypt(bytes(12), sealed, job.encode()))
    except (InvalidTag, ValueError) as error:
        raise ValueError(f"the sealed keys of {job} cannot be opened") from error


def _cipher(shared: bytes, sender: bytes, receiver: bytes) -> ChaCha20Poly1305:
    kdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"hpo-trainer sealed keys" + sender + receiver)
    return ChaCha20Poly1305(kdf.derive(shared))


def package_name(job: str) -> str:
    """Under which the box lies in the cluster's package store."""
    return f"_hpo_keys_{job}.zip"


def receive(
    job: str,
    take_box: Callable[[], bytes | None],
    say: Callable[[str], None],
    environment: MutableMapping[str, str] = os.environ,
    wait_s: float = WAIT_S,
) -> None:
    """In the job: announce a public key, wait for the box, and put the keys into this process's environment."""
    private = X25519PrivateKey.generate()
    say(announcement(job, private))
    deadline = time.monotonic() + wait_s
    while (box := take_box()) is None:
        if time.monotonic() > deadline:
            names = environment.get(KEYS_VARIABLE, "")
            say(
                f"nobody sent {names} within {wait_s:g} s (did launch.py submit end early?); going on without"
            )
            return
        time.sleep(0.5)
    keys = unseal(job, box, private)
    environment.update(keys)
    say(f"received {', '.join(sorted(keys))}")
