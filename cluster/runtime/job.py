"""The job that this process drives, and the way in which keys (of W&B, for example) reach it.

Ray stores the environment of a job and shows it to every user who may list jobs, so a key must not be put there.
Instead:

    the job        creates a key pair and writes the public key to its log
    the submitter  reads the public key, seals the keys for it, and sends the sealed box to the cluster's package store
    the job        takes the box from the store and opens it. The keys stay in the memory of the driver alone; the hub's
                   key is also in the process that downloads the model (cluster/training/session.py)

Only that one process can open the box, and only once (X25519, HKDF-SHA256, ChaCha20-Poly1305; the job's id is
authenticated). A user who can run code in the cluster can read a process's memory in any case. A user who can only list
jobs and read logs cannot.

Ray is imported only when keys are received.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEYS_VARIABLE = "HPO_TRAINER_SEALED_KEYS"
"""The names of the keys, without their values, that the job waits for."""
SENT_BY_DEFAULT = ("WANDB_API_KEY", "HF_TOKEN")
WAIT_S = 120.0
"""The time for which a job waits for its keys."""
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""The variable in which Ray's job server describes the job; the name is Ray's."""
_ANNOUNCEMENT = re.compile(r"^public key for the keys of (?P<job>\S+): (?P<public>[A-Za-z0-9+/=]{44})$", re.M)
_PUBLIC_BYTES = 32


def current_job() -> str | None:
    """Return the id of the job that this process drives, or None outside a job."""
    job: str | None = _job_config().get("metadata", {}).get("job_submission_id")
    return job


def code_is_packaged() -> bool:
    """Return True in a job whose working directory Ray unpacks on every node."""
    return "working_dir" in _job_config().get("runtime_env", {})


def _job_config() -> dict[str, Any]:
    config: dict[str, Any] = json.loads(os.environ.get(_JOB_CONFIG, "{}"))
    return config


def receive_keys(say: Callable[[str], None]) -> None:
    """Wait for the keys if this is a job that keys are sent to.

    The keys go into the environment of this process, and into that of no process that Ray starts.
    """
    job = current_job()
    if job is None or KEYS_VARIABLE not in os.environ:
        return
    from ray.experimental.internal_kv import GcsClient

    store: Any = GcsClient(address=os.environ["RAY_ADDRESS"])
    name = f"gcs://{package_name(job)}".encode()

    def take_box() -> bytes | None:
        box: bytes | None = store.internal_kv_get(name, None, timeout=10)
        if box is not None:
            store.internal_kv_del(name, False, None, timeout=10)
        return box

    receive(job, take_box, say)


def receive(
    job: str,
    take_box: Callable[[], bytes | None],
    say: Callable[[str], None],
    environment: MutableMapping[str, str] = os.environ,
    wait_s: float = WAIT_S,
) -> None:
    """Announce a public key in the job's log, wait for the box, and put the keys into `environment`."""
    private = X25519PrivateKey.generate()
    say(announcement(job, private))
    deadline = time.monotonic() + wait_s
    while (box := take_box()) is None:
        if time.monotonic() > deadline:
            names = environment.get(KEYS_VARIABLE, "")
            say(
                f"received no {names} within {wait_s:g} s; launch.py submit may have ended early; continuing without"
            )
            return
        time.sleep(0.5)
    keys = unseal(job, box, private)
    environment.update(keys)
    say(f"received {', '.join(sorted(keys))}")


def announcement(job: str, private: X25519PrivateKey) -> str:
    """Return the line of the job's log that announces its public key."""
    public = base64.b64encode(private.public_key().public_bytes_raw()).decode()
    return f"public key for the keys of {job}: {public}"


def announced(job: str, log: str) -> bytes | None:
    """Return the public key that a job's log announces, or None if it does not announce one yet."""
    found = [match["public"] for match in _ANNOUNCEMENT.finditer(log) if match["job"] == job]
    return base64.b64decode(found[-1]) if found else None


def package_name(job: str) -> str:
    """Return the name of the job's box in the cluster's package store."""
    return f"_hpo_keys_{job}.zip"


def seal(job: str, keys: Mapping[str, str], public: bytes) -> bytes:
    """Return a box that only the process with the private key of `public` can open."""
    own = X25519PrivateKey.generate()
    shared = own.exchange(X25519PublicKey.from_public_bytes(public))
    own_public = own.public_key().public_bytes_raw()
    # Each box has its own secret, so its nonce may always be the same.
    box = _cipher(shared, own_public, public).encrypt(
        bytes(12), json.dumps(dict(keys)).encode(), job.encode()
    )
    return own_public + box


def unseal(job: str, box: bytes, private: X25519PrivateKey) -> dict[str, str]:
    """Return the keys in a box.

    Raises:
        ValueError: if the box was sealed for another process or job, or is damaged.
    """
    sender, sealed = box[:_PUBLIC_BYTES], box[_PUBLIC_BYTES:]
    public = private.public_key().public_bytes_raw()
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(sender))
        opened = _cipher(shared, sender, public).decrypt(bytes(12), sealed, job.encode())
        keys: dict[str, str] = json.loads(opened)
        return keys
    except (InvalidTag, ValueError) as error:
        raise ValueError(f"the sealed keys of {job} cannot be opened") from error


def _cipher(shared: bytes, sender: bytes, receiver: bytes) -> ChaCha20Poly1305:
    kdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"hpo-trainer sealed keys" + sender + receiver)
    return ChaCha20Poly1305(kdf.derive(shared))
