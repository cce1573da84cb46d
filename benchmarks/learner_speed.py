"""Compare the learner's speed with peers on the same tokens, in one run on one machine. Times are of whole steps.

    group-512       8 responses of 48 tokens to a prompt of 512, SmolLM2-135M in float32
    group-2048      16 responses of 64 tokens to a prompt of 2,048, the same model
    demonstration   32 × 16 short responses to short prompts, the starter model's shape, as the demonstration has them

Ways: `full` is transformers' forward pass over every prompt with its response, `trl` the training step of TRL's
GRPOTrainer, and `floor` bare PyTorch over as many tokens without padding (see benchmarks/peers.py). `alone` and
`shared` are a learner rank without and with prefix sharing, DeepSpeed and the cutting into micro-batches included.

    python benchmarks/learner_speed.py                       # all cases: 20 minutes on two cores
    python benchmarks/learner_speed.py --cases group-512 --repeats 5
    python benchmarks/learner_speed.py --cases demonstration --profile shared

Each case that is run takes its place in the results; the others stay as they are.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.cases import DEMONSTRATION, GROUP_512, GROUP_2048, Case, vocabulary_size
from benchmarks.report import Target, checked, medians, ratios, seconds_in_turn, write_cases
from cluster.core.actor_options import LearnerOptions
from cluster.core.config import LearnerConfig, ObjectiveConfig
from cluster.core.types import TrainingSample
from learner.model.batching import Packing, computed_tokens, shard

CASES = {"group-512": GROUP_512, "group-2048": GROUP_2048, "demonstration": DEMONSTRATION}
WAYS = {
    "group-512": ("full", "trl", "alone", "shared"),
    "group-2048": ("full", "trl", "shared"),
    "demonstration": ("floor", "alone", "shared"),
}
DEFAULT_ZERO_STAGE = LearnerConfig().zero_stage
TARGETS: dict[str, tuple[Target, ...]] = {
    "group-512": (Target("full / shared", 4.0), Target("trl / shared", 4.0)),
    "group-2048": (Target("full / shared", 10.0), Target("trl / shared", 10.0)),
    "demonstration": (Target("floor / alone", 1 / 1.1), Target("floor / shared", 1 / 1.1)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, help="of each way; default: by case")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--zero-stage", type=int, default=DEFAULT_ZERO_STAGE)
    parser.add_argument("--profile", metavar="WAY", help="print where its time goes, and measure nothing")
    parser.add_argument("--smoke", action="store_true", help="tiny models and lengths: does it run?")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/learner_speed.json")
    arguments = parser.parse_args()

    for name in arguments.cases:
        case = CASES[name].smoke() if arguments.smoke else CASES[name]
        if arguments.repeats:
            case = replace(case, repeats=arguments.repeats)
        print(name, flush=True)
        with case.model_directory() as model, tempfile.TemporaryDirectory() as scratch:
            samples = case.samples(vocabulary_size(model))
            rank, packing = started_rank(case, model, arguments.threads, arguments.zero_stage)
            steps = make_steps(WAYS[name], case, samples, model, scratch, rank, packing)
            if arguments.profile:
                profile(steps[arguments.profile])
                continue
            found = measure(steps, case.repeats)
        sizes = {"threads": arguments.threads, "zero_stage": arguments.zero_stage, **asdict(case)}
        report = {"sizes": sizes, **tokens_of(samples, packing), **found}
        report["targets"] = checked(found["ratios"], TARGETS[name])
        by_default = arguments.zero_stage == DEFAULT_ZERO_STAGE
        title = name if by_default else f"{name}, ZeRO {arguments.zero_stage}"
        write_cases("learner_speed", {title: report}, arguments.output)


def make_steps(
    ways: Sequence[str],
    case: Case,
    samples: Sequence[TrainingSample],
    model: Path,
    scratch: str,
    rank: Any,
    packing: Packing,
) -> dict[str, Any]:
    """Return one function per variant that does a step and returns the gradient norm. The peers share one model."""
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks import peers

    other = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()

    def learner(sharing: Any) -> peers.Step:
        def step() -> float:
            (micro_batches,) = shard(samples, 1, replace(packing, prefix_sharing=sharing))
            (sums,) = rank.learn([micro_batches])
            return float(sums["grad_norm"])

        return step

    makers = {
        "full": lambda: peers.full_forward(other, samples, case.micro_batch_tokens),
        "trl": lambda: peers.trl(other, samples, case.micro_batch_tokens, scratch),
        "floor": lambda: peers.floor(other, samples),
        "alone": lambda: learner("off"),
        "shared": lambda: learner("auto"),
    }
    return {way: makers[way]() for way in ways}


def measure(steps: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Measure the steps after one uncounted step of each (allocations, DeepSpeed's first step). Gradient norms are
    compared if the tokens are the same."""
    norms: dict[str, list[float]] = {way: [] for way in steps}
    steps["shared"]()

    def step(way: str) -> None:
        norms[way].append(steps[way]())

    seconds = seconds_in_turn({way: partial(step, way) for way in steps}, repeats)
    same = [norm for way, values in norms.items() if way != "floor" for norm in values]
    if not math.isclose(max(same), min(same), rel_tol=1e-3):
        raise AssertionError(f"the ways do not compute the same gradient: {norms}")
    over = [way for way in steps if way not in ("alone", "shared")]
    return {
        "seconds": seconds,
        "median_s": medians(seconds),
        "gradient_norms": norms,
        "ratios": ratios(medians(seconds), over),
    }


def profile(step: Callable[[], float]) -> None:
    """Print the operators of the third step. Names with `aten::` are PyTorch's; the rest is Python and DeepSpeed."""
    import torch

    for _ in range(2):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        step()
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=60))


def tokens_of(samples: Sequence[TrainingSample], packing: Packing) -> dict[str, int]:
    (shared,) = shard(samples, 1, packing)
    return {
        "tokens": sum(sample.tokens for sample in samples),
        "tokens_with_shared_prompts": sum(computed_tokens(bundle) for batch in shared for bundle in batch),
    }


def started_rank(case: Case, model: Path, threads: int, zero_stage: Any) -> tuple[Any, Packing]:
    """Start a learner rank in this process, in which another may have run before."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import torch

    from benchmarks.peers import LEARNING_RATE, MAX_GRADIENT_NORM
    from learner.engine.rank import LearnerRank

    learner = LearnerConfig(
        zero_stage=zero_stage,
        micro_batch_tokens=case.micro_batch_tokens,
        threads_per_rank=threads,
        prefix_sharing="on",
        learning_rate=LEARNING_RATE,
        max_grad_norm=MAX_GRADIENT_NORM,
    )

    class Rank(LearnerRank):
        """Skip joining: DeepSpeed can join a group once per process."""

        def _join(self, address: str, port: int) -> None:
            if not torch.distributed.is_initialized():
                super()._join(address, port)

    rank = Rank(0, LearnerOptions(str(model), "float32", 1.0, 0, learner, ObjectiveConfig(), (), 1000))
    rank.start(*rank.rendezvous())
    return rank, rank.packing()


if __name__ == "__main__":
    main()
