"""Ray's token is sent automatically to clusters on this machine, and to no other cluster."""

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
ELSEWHERE = "192.0.2.200"  # an address reserved for examples


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set up the home of a user without any settings for tokens."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it, whatever the test does to it
        monkeypatch.delenv(name)
    return tmp_path


def give_token(home: Path) -> None:
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("secret")


def test_a_cluster_on_this_machine_receives_the_token(home: Path) -> None:
    give_token(home)
    send_token_to(f"{OWN}:6379")
    assert os.environ["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("address", [f"{ELSEWHERE}:6379", "somewhere.example:6379", "auto", ""])
def test_no_other_cluster_receives_the_token(home: Path, address: str) -> None:
    give_token(home)
    send_token_to(address)
    assert "RAY_AUTH_MODE" not in os.environ


def test_without_a_token_none_is_sent(home: Path) -> None:
    """With RAY_AUTH_MODE=token and without a token, Ray would refuse to connect."""
    send_token_to(f"{OWN}:6379")
    assert "RAY_AUTH_MODE" not in os.environ


def test_the_settings_of_the_user_take_precedence(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_token(home)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    send_token_to(f"{OWN}:6379")
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    send_token_to("localhost:6379")
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_the_sources_of_a_token_are_listed() -> None:
    assert token_sources() == "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
