"""Measure the peak memory of log-probabilities with a large vocabulary: in blocks, and with all logits at once.

Measured from the hidden states to the gradients of hidden states and output weights, above what is there before: the
weights, a gradient for them as earlier micro-batches leave it, and the hidden states. Each way runs in a process of its
own, and the operating system says what the peak was (resident memory; Linux).

    python benchmarks/logprob_memory.py
    python benchmarks/logprob_memory.py --hidden-size 1536

Each hidden size that is run takes its place in the results; the others stay as they are.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import write_cases

WAYS = ("chunked", "whole")
TARGET_GIB = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocabulary", type=int, default=150_000)
    parser.add_argument("--tokens", type=int, default=8192, help="response tokens of one micro-batch")
    parser.add_argument("--hidden-size", type=int, default=576, help="of the model; SmolLM2-135M has 576")
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=["chunked"], help="`whole` needs 3 × the logits"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/logprob_memory.json")
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.vocabulary, arguments.tokens, arguments.ways = 5000, 256, list(WAYS)
    sizes = {name: getattr(arguments, name) for name in ("vocabulary", "tokens", "hidden_size", "threads")}
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, **sizes)))
        return
    options = [f"--{name.replace('_', '-')}={value}" for name, value in sizes.items()]
    found = {}
    for way in arguments.ways:
        child = subprocess.run(
            [sys.executable, __file__, "--measure", way, *options],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        found[way] = json.loads(child.stdout.splitlines()[-1])
        print(way, found[way], flush=True)
    logits_gib = round(sizes["vocabulary"] * sizes["tokens"] * 4 / 2**30, 3)
    peak = found["chunked"]["peak_above_model_gib"] if "chunked" in found else None
    report = {
        "sizes": sizes,
        "logits_gib": logits_gib,
        "ways": found,
        "targets": {
            "peak_above_model_gib": {
                "below": TARGET_GIB,
                "measured": peak,
                "holds": peak is not None and peak < TARGET_GIB,
            }
        },
    }
    write_cases("logprob_memory", {f"hidden-{arguments.hidden_size}": report}, arguments.output)


def measure(way: str, vocabulary: int, tokens: int, hidden_size: int, threads: int) -> dict[str, float]:
    import torch

    from learner.model.token_logprobs import TokenLogprobs

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    head = torch.nn.Linear(hidden_size, vocabulary, bias=False)
    hidden = torch.randn(tokens, hidden_size, requires_grad=True)
    ids = torch.randint(vocabulary, (tokens,))
    head.weight.grad = torch.ones_like(head.weight)
    (
        torch.ones(64, 64, requires_grad=True) @ torch.ones(64, 64)
    ).sum().backward()  # threads and libraries are loaded
    before = memory_gib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    if way == "chunked":
        logprobs, _ = TokenLogprobs(head)(hidden, ids, 1.0)
    else:
        logprobs = head(hidden).log_softmax(-1).gather(-1, ids[:, None])
    logprobs.sum().backward()
    return {"peak_above_model_gib": round(memory_gib("VmHWM") - before, 3)}


def memory_gib(name: str) -> float:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) / 2**20


if __name__ == "__main__":
    main()
