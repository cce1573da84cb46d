"""The command line: `python -m benchmarks.gpu_check --help`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu_check.findings import Settings
from benchmarks.gpu_check.parts import PARTS, chosen
from benchmarks.gpu_check.report import exit_code, write_reports
from benchmarks.gpu_check.runner import run_parts

OUTPUT = Path("runs/gpu_check")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description="Check that this machine's GPUs can do what the trainer asks of them. See docs/gpu_check.md.",
        epilog="parts: "
        + "; ".join(f"{part.name} ({part.title}, at most {part.limit_s:g} s)" for part in PARTS),
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--parts", help="names of parts, separated by commas; default: all")
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, help=f"directory of the report; default: {OUTPUT}"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument(
        "--limit-s", type=float, help="lower the time limit of every part to this many seconds"
    )
    arguments = parser.parse_args()
    names = tuple(arguments.parts.split(",")) if arguments.parts else tuple(part.name for part in PARTS)
    try:
        parts = chosen(names)
    except ValueError as error:
        parser.error(str(error))
    if arguments.limit_s is not None:
        parts = tuple(replace(part, limit_s=min(part.limit_s, arguments.limit_s)) for part in parts)

    output: Path = arguments.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as scratch:
        settings = Settings(device=arguments.device, smoke=arguments.smoke, scratch=scratch)
        outcomes = run_parts(parts, settings, output)
    for path in write_reports(outcomes, settings, output):
        print(f"written to {path}")
    return exit_code(outcomes)


if __name__ == "__main__":
    sys.exit(main())
