"""To whom Ray's token is sent without being asked: to this machine, and to nobody else."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from cluster.runtime.auth import send_token_to, token_sources

OWN = next(
    each.address
    for addresses in psutil.net_if_addrs().values()
    for each in addresses
    if each.address.startswith("127.")
)
ELSEWHERE = "192.0.2.200"  # reserved for examples


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has never said anything about tokens."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards, whatever is done to it
        monkeypatch.delenv(name)
    return tmp_path


def give_token(home: Path) -> None:
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("secret")


def test_a_cluster_of_this_machine_is_sent_its_token(home: Path) -> None:
    give_token(home)
    send_token_to(f"{OWN}:6379")
    assert os.environ["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("address", [f"{ELSEWHERE}:6379", "somewhere.example:6379", "auto", ""])
def test_nobody_else_is(home: Path, address: str) -> None:
    give_token(home)
    send_token_to(address)
    assert "RAY_AUTH_MODE" not in os.environ


def test_where_there_is_no_token_none_is_sent(home: Path) -> None:
    """Ray would refuse to connect without it."""
    send_token_to(f"{OWN}:6379")
    assert "RAY_AUTH_MODE" not in os.environ


def test_what_the_user_says_counts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_token(home)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    send_token_to(f"{OWN}:6379")
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    send_token_to("localhost:6379")
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_it_says_where_a_token_may_be() -> None:
    assert token_sources() == "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
