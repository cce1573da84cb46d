"""Malformed addresses and proxies, wherever they come from: one line and exit code 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.commands.test_odd_ground import (
    NOWHERE,
    WITH_ADDRESS,
    comparison,
    config_of,
    content,
    made,
    refused,
    run_command,
)
from tests.cluster.commands.test_odd_numbers import command_options

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


ADDRESSED = sorted({command for command, parameter, *_ in command_options() if parameter == "address"})
ACTORS = {"rollout": "worker", "learner": "rank", "reward": "worker"}
VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
BY_CONFIGURATION = ("train", "eval", "plan", "check", "doctor", "submit")
"""The commands whose configuration may have an address."""


def arguments_of(command: str, place: Path) -> list[object]:
    """Make what a command needs up to its address, and return its arguments."""
    if command in WITH_ADDRESS:
        return [*WITH_ADDRESS[command]]
    if command == "compare":
        return [comparison(place)]
    if command in ("scale", "export"):
        run = made(config_of(place)).path
        return [run, "--rollout-workers", 2] if command == "scale" else [run, place / "exported"]
    file = place / "demo.yaml"
    file.write_text(yaml.safe_dump({"name": "demo", "directory": str(place / "runs")}))
    return [file]


def sources(command: str) -> Iterator[str]:
    """Yield the places that an address of a command comes from: the option, variables, the configuration."""
    yield "--address"
    if command in (*WITH_ADDRESS, "submit"):
        yield from VARIABLES
    elif command != "scale":  # it has the address that its run has recorded
        yield "RAY_ADDRESS"
    if command in (*WITH_ADDRESS, "submit"):
        return
    yield "auto"  # Ray looks into the variable for it


def test_the_commands_with_an_address_are_found() -> None:
    assert {*BY_CONFIGURATION, *WITH_ADDRESS, "compare", "export", "scale"} == set(ADDRESSED)


@pytest.mark.parametrize(
    ("command", "source"), [(command, source) for command in ADDRESSED for source in sources(command)]
)
def test_a_malformed_address_is_refused_before_anything_is_written(
    command: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    arguments = arguments_of(command, tmp_path)
    before = content(tmp_path)
    for address in MALFORMED:
        options = ["--address", address]
        if source != "--address":
            if "\x00" in address:
                continue  # no variable can have it
            monkeypatch.setenv("RAY_ADDRESS" if source == "auto" else source, address)
            options = ["--address", "auto"] if source == "auto" else []
        result = run_command(command, *arguments, *options)
        assert refused(result), (address, result.output)
        assert "is not an address" in result.stderr
        assert result.stderr.startswith(f"{'RAY_ADDRESS' if source == 'auto' else source}: ")
        assert "PLANTED" not in result.output
        assert content(tmp_path) == before


@pytest.mark.parametrize("command", BY_CONFIGURATION)
def test_a_malformed_address_of_a_configuration_is_refused(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (file,) = map(Path, map(str, arguments_of(command, tmp_path)))
    for address in MALFORMED:
        small = {kind: {f"cpus_per_{each}": 0.1} for kind, each in ACTORS.items()}
        values = {"directory": str(tmp_path / "runs"), "cluster": {"address": address}, **small}
        file.write_text(yaml.safe_dump(values))
        before = content(tmp_path)
        result = run_command(command, file, *(["--no-check"] if command == "submit" else []))
        assert refused(result), (address, result.output)
        assert result.stderr.startswith("cluster.address: ")
        assert "PLANTED" not in result.output
        assert content(tmp_path) == before


@pytest.mark.parametrize("command", ["train", "eval", "plan", "export", "check", "doctor"])
def test_a_job_server_is_refused_before_anything_is_written(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = arguments_of(command, tmp_path)
    before = content(tmp_path)
    result = run_command(command, *arguments, "--address", "http://127.0.0.1:8265")
    assert refused(result), result.output
    assert "is a job server" in result.stderr
    assert content(tmp_path) == before


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
