"""Malformed addresses and proxies, wherever they come from: one line and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.commands.test_odd_ground import (
    NOWHERE,
    WITH_ADDRESS,
    config_of,
    made,
    refused,
    run_command,
)

MALFORMED = (
    "not an address",
    "HOST",
    "host:",
    "host:0",
    "host:99999",
    "host:abc",
    ":6379",
    "http://",
    "http://host:abc",
    "http://[::1",
    "ftp://host:1",
    "host:1\n",
    "a" * 300 + ":1",
    "a..b:6379",
    "ray://a..b:1",
    "a" * 64 + ".example:6379",
    "user:PLANTED@host:6379",
    "\x00:1",
)


@pytest.mark.parametrize("command", WITH_ADDRESS)
def test_a_malformed_address_is_refused(command: str) -> None:
    for address in MALFORMED:
        result = run_command(command, *WITH_ADDRESS[command], "--address", address)
        assert refused(result), (address, result.output)
        assert "is not an address" in result.stderr
        assert "PLANTED" not in result.output


@pytest.mark.parametrize("address", MALFORMED)
def test_scale_refuses_a_malformed_address_wherever_it_comes_from(tmp_path: Path, address: str) -> None:
    run = made(config_of(tmp_path))
    result = run_command("scale", run.path, "--rollout-workers", 2, "--address", address)
    assert refused(result)
    assert "--address: " in result.stderr
    run.ray_address_file.write_text(address.replace("\n", " x"))
    result = run_command("scale", run.path, "--rollout-workers", 2)
    assert refused(result)
    assert "ray_address: " in result.stderr
    assert "PLANTED" not in result.output


def test_scale_refuses_a_job_server(tmp_path: Path) -> None:
    run = made(config_of(tmp_path))
    result = run_command("scale", run.path, "--rollout-workers", 2, "--address", "http://127.0.0.1:8265")
    assert refused(result)
    assert "is a job server" in result.stderr


@pytest.mark.parametrize(
    "proxy", ["rubbish", "http://[", "socks5://127.0.0.1:1", "http://127.0.0.1:9", "::::", "a b"]
)
def test_a_proxy_that_cannot_be_used_is_one_line(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
        monkeypatch.setenv(name.lower(), proxy)
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    assert refused(run_command("list", "--address", f"http://{NOWHERE}"))
