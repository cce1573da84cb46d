"""Keys reach their job, and no other process can read them on the way."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from cluster.runtime.job import KEYS_VARIABLE, announced, announcement, receive, seal, unseal

PLANTED = "planted-key-0123456789"


@given(st.dictionaries(st.text(min_size=1), st.text()))
def test_the_receiver_can_open_a_box(keys: dict[str, str]) -> None:
    private = X25519PrivateKey.generate()
    public = announced("job", announcement("job", private))
    assert public is not None
    assert unseal("job", seal("job", keys, public), private) == keys


def test_no_other_process_can_open_a_box() -> None:
    private, other = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    box = seal("job", {"WANDB_API_KEY": PLANTED}, private.public_key().public_bytes_raw())
    assert PLANTED.encode() not in box
    damaged = box[:-1] + bytes([box[-1] ^ 1])
    for job, sealed, key in [("job", box, other), ("another-job", box, private), ("job", damaged, private)]:
        with pytest.raises(ValueError, match="cannot be opened"):
            unseal(job, sealed, key)


def test_each_box_differs() -> None:
    public = X25519PrivateKey.generate().public_key().public_bytes_raw()
    assert seal("job", {"K": PLANTED}, public) != seal("job", {"K": PLANTED}, public)


def test_only_the_announcement_of_the_same_job_is_found_in_a_log() -> None:
    private = X25519PrivateKey.generate()
    log = f"Runtime env is setting up.\n{announcement('mine', private)}\nstep 1\n"
    assert announced("mine", log) == private.public_key().public_bytes_raw()
    assert announced("another", log) is None
    assert announced("mine", "nothing yet") is None


def test_a_job_puts_the_keys_into_its_environment_and_prints_their_names() -> None:
    environment, said = {KEYS_VARIABLE: "WANDB_API_KEY"}, []
    answers = iter([None, "box"])

    def take_box() -> bytes | None:
        if next(answers) is None:
            return None
        public = announced("job", said[0])
        assert public is not None
        return seal("job", {"WANDB_API_KEY": PLANTED}, public)

    receive("job", take_box, said.append, environment)
    assert environment["WANDB_API_KEY"] == PLANTED
    assert said[-1] == "received WANDB_API_KEY"
    assert PLANTED not in "".join(said)


def test_a_job_without_its_keys_continues_with_a_message() -> None:
    environment, said = {KEYS_VARIABLE: "WANDB_API_KEY"}, []
    receive("job", lambda: None, said.append, environment, wait_s=0)
    assert "WANDB_API_KEY" not in environment
    assert "received no WANDB_API_KEY" in said[-1]
