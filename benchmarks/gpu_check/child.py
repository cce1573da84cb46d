"""The process of one part: `python -m benchmarks.gpu_check.child '{"function": …}'`. Started by `runner.py`."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path

from benchmarks.gpu_check.findings import Findings, NotRunError, Settings

STACK_BEFORE_END_S = 2.0
"""The time before the limit at which the process writes the stacks of its threads to the log, if it hangs."""


def main() -> int:
    order = json.loads(sys.argv[1])
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(0.1, order["limit_s"] - STACK_BEFORE_END_S))
    findings = Findings(Path(order["findings"]))
    settings = Settings(**order["settings"])
    module, _, name = order["function"].partition(":")
    try:
        if settings.on_gpu and order["name"] != "environment":
            require_gpu()
        getattr(import_module(module), name)(settings, findings)
        findings.complete = True
    except NotRunError as obstacle:
        findings.obstacle = str(obstacle)
    except Exception as error:  # the report says what it was, and the other parts run
        traceback.print_exc()
        findings.error = f"{type(error).__name__}: {first_line(str(error))}"
    findings.save()
    faulthandler.cancel_dump_traceback_later()
    return 0


def require_gpu() -> None:
    """Raise an error if torch sees no GPU.

    Raises:
        NotRunError: if torch sees no GPU.
    """
    # Otherwise the question alone would initialize CUDA, and processes that this one forks could not use it.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    if not torch.cuda.is_available():
        raise NotRunError("torch sees no GPU; the part environment says why")


def first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")


if __name__ == "__main__":
    sys.exit(main())
