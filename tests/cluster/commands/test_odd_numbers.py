"""Every numeric option of every command, with extreme values: one line, exit code 2, and nothing is left behind.

The options are found in the signatures of the commands, so a new one is tested without being listed here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from typer.models import OptionInfo

from cluster.commands.jobs.submission import SubmissionRefusedError, resources
from launch import app
from tests.cluster.commands.test_odd_ground import refused, run_command
from tests.cluster.configuration.test_numbers import flattened

IMPOSSIBLE = ["inf", "-inf", "nan", str(10**20), str(-(10**20)), "1" + "0" * 5000, "-1", "", "x"]
ARGUMENTS = {"export": ["nowhere", "exported"]}
"""The arguments of a command before the option; by default a file that does not exist, so that nothing starts."""


def command_options() -> Iterator[tuple[str, str, str, Any, OptionInfo]]:
    """Yield each option: its command, parameter, name, annotation and description."""
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        for parameter, hint in get_type_hints(command.callback, include_extras=True).items():
            parts = [*flattened(hint), *(extra for part in flattened(hint) for extra in metadata(part))]
            for option in (part for part in parts if isinstance(part, OptionInfo)):
                names = [each for each in option.param_decls or () if each.startswith("--")]
                yield name, parameter, (names or [f"--{parameter.replace('_', '-')}"])[0], hint, option


def metadata(annotation: Any) -> tuple[Any, ...]:
    return getattr(annotation, "__metadata__", ())


NUMBERS = sorted(
    {
        (command, name)
        for command, _, name, hint, _ in command_options()
        if any(part in (int, float) for part in flattened(hint))
    }
)


def test_the_numeric_options_are_found() -> None:
    assert {("scale", "--rollout-workers"), ("submit", "--driver-cpus"), ("export", "--step")} <= set(NUMBERS)
    assert len(NUMBERS) >= 8


@pytest.mark.parametrize(("command", "option"), NUMBERS)
def test_an_impossible_number_is_refused_by_the_name_of_its_option(
    command: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for value in [*IMPOSSIBLE, "0"]:
        result = run_command(command, *ARGUMENTS.get(command, ["nowhere"]), f"{option}={value}")
        assert refused(result), (value, result.output)
        if value != "0":  # which some options accept, and then the file is missing
            assert result.stderr.startswith(f"{option}: expected "), (value, result.stderr)
            assert len(result.stderr) < 200
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("amount", IMPOSSIBLE)
def test_an_impossible_amount_of_a_resource_is_refused(amount: str) -> None:
    with pytest.raises(SubmissionRefusedError, match="NAME=AMOUNT"):
        resources([f"spot={amount}"])


def test_possible_amounts_are_read() -> None:
    assert resources(["a=0", "b=0.5", "c=3"]) == {"a": 0, "b": 0.5, "c": 3}
