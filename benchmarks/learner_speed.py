"""How fast the learner is, against plain PyTorch on the same tokens, in one run on one machine.

    long-512    8 responses of 48 tokens to a prompt of 512, SmolLM2-135M's shape, forward and backward
    long-2048   16 responses of 64 tokens to a prompt of 2,048, the same
    short       32 × 16 short responses to short prompts, the starter model's shape, forward, backward and step, as the
                demonstration has them; the learner's part with DeepSpeed

Ways: `full` is transformers' forward pass over every prompt with its response, `plain` the same with logits of response
positions only, and `floor` that over tokens without padding (rows of one length, as many tokens in all). `alone` and
`shared` are the learner without and with prefix sharing. Weights are random, which costs as much as trained ones.

    python benchmarks/learner_speed.py                       # all cases: about half an hour on two cores
    python benchmarks/learner_speed.py --cases long-512 --repeats 5
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import medians, seconds_in_turn, write
from cluster.config import LearnerConfig, ObjectiveConfig
from learner.batching import Packing, computed_tokens, shard
from learner.logprobs import TokenBatch, response_logprobs
from learner.policy import prepare_policy
from learner.weighing import Row

SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}
STARTER = {
    "vocab_size": 25,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "max_position_embeddings": 256,
}
TINY = STARTER | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}


@dataclass(frozen=True)
class Case:
    shape: dict[str, Any]
    prompts: int
    responses: int
    prompt_tokens: tuple[int, int]
    """Shortest and longest."""
    response_tokens: tuple[int, int]
    micro_batch_tokens: int
    repeats: int

    def rows(self) -> list[Row]:
        """The same in every run."""
        generator = np.random.default_rng(0)

        def ids(low: int, high: int) -> np.ndarray:
            return generator.integers(0, self.shape["vocab_size"], generator.integers(low, high + 1))

        prompts = [ids(*self.prompt_tokens) for _ in range(self.prompts)]
        pairs = [(prompt, ids(*self.response_tokens)) for prompt in prompts for _ in range(self.responses)]
        scale = 1 / sum(len(response) for _, response in pairs)
        return [
            Row(prompt, response, np.full(len(response), -3, np.float32), float(generator.normal()), scale)
            for prompt, response in pairs
        ]


CASES = {
    "long-512": Case(SMOLLM2, 1, 8, (512, 512), (48, 48), 2304, 3),
    "long-2048": Case(SMOLLM2, 1, 16, (2048, 2048), (64, 64), 4096, 2),
    "short": Case(STARTER, 32, 16, (13, 15), (9, 14), 32768, 20),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, help="of each way; default: by case")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="tiny models and lengths: does it run?")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/learner_speed.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    found = {}
    for name in arguments.cases:
        case = CASES[name]
        if arguments.smoke:
            tokens = tuple(max(2, n // 32) for n in case.prompt_tokens)
            case = replace(case, shape=TINY, prompts=min(case.prompts, 4), prompt_tokens=tokens, repeats=1)
        if arguments.repeats:
            case = replace(case, repeats=arguments.repeats)
        print(name, flush=True)
        found[name] = measure_steps(case, arguments.threads) if name == "short" else measure_passes(case)
        print(f"  {found[name]['ratios']}", flush=True)
    write("learner_speed", {"threads": arguments.threads, "cases": found}, arguments.output)


def make_model(case: Case) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**case.shape)).float().train()


def measure_passes(case: Case) -> dict[str, Any]:
    """Forward and backward of one group; the optimiser's step is the same for all ways."""
    rows, losses = case.rows(), {}
    plain_model = make_model(case)
    policy, packing = prepare_policy(make_model(case), LearnerConfig(prefix_sharing="on"), None)

    def learner(sharing: Any) -> Callable[[], None]:
        (micro_batches,) = shard(
            rows, 1, replace(packing, micro_batch_tokens=case.micro_batch_tokens, prefix_sharing=sharing)
        )

        def run() -> None:
            policy.zero_grad()
            loss = 0.0
            for micro_batch in micro_batches:
                batch = TokenBatch.from_micro_batch(micro_batch, torch.device("cpu"))
                logprobs_BT, _ = response_logprobs(policy, batch, 1.0)
                part = -(batch.scales_B * batch.advantages_B * logprobs_BT.sum(dim=1)).sum()
                part.backward()
                loss += part.item()
            losses[sharing] = loss

        return run

    def transformers(all_logits: bool) -> Callable[[], None]:
        count = max(1, case.micro_batch_tokens // rows[0].tokens)
        parts = [rows[start : start + count] for start in range(0, len(rows), count)]

        def run() -> None:
            plain_model.zero_grad()
            losses[all_logits] = sum(plain_pass(plain_model, part, all_logits) for part in parts)

        return run

    ways = {
        "full": transformers(all_logits=True),
        "plain": transformers(all_logits=False),
        "alone": learner("off"),
        "shared": learner("auto"),
    }
    if case.prompt_tokens[0] > 1000:  # takes minutes, and is the same as plain but for the chunks of logits
        del ways["alone"]
    seconds = seconds_in_turn(ways, case.repeats)
    values = list(losses.values())
    assert max(values) - min(values) <= 1e-4 * abs(values[0]) + 1e-6, losses
    return summary(case, rows, seconds, over=["full", "plain"])


def plain_pass(model: Any, rows: Sequence[Row], all_logits: bool) -> float:
    """Rows of one length, so that nothing is padded."""
    ids = torch.from_numpy(
        np.stack([np.concatenate([row.prompt_token_ids, row.response_token_ids]) for row in rows])
    )
    width = len(rows[0].response_token_ids)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=0 if all_logits else width + 1).logits
    logprobs = logits[:, -width - 1 : -1].log_softmax(-1).gather(-1, ids[:, -width:, None]).squeeze(-1)
    weights = torch.tensor([row.scale * row.advantage for row in rows])
    loss = -(weights * logprobs.sum(dim=1)).sum()
    loss.backward()
    return loss.item()


def measure_steps(case: Case, threads: int) -> dict[str, Any]:
    """Whole optimiser steps: the learner rank as the run has it, with DeepSpeed, against bare PyTorch."""
    rows = case.rows()
    with tempfile.TemporaryDirectory() as directory:
        make_model(case).save_pretrained(directory)
        rank, packing = started_rank(case, directory, threads)
    tokens = sum(row.tokens for row in rows)
    width = round(tokens / len(rows))
    model = make_model(case)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    ids = torch.randint(case.shape["vocab_size"], (round(tokens / width), width))
    response = round(width * sum(len(row.response_token_ids) for row in rows) / tokens)

    def floor() -> None:
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=response + 1).logits[:, :-1]
        logprobs = logits.log_softmax(-1).gather(-1, ids[:, -response:, None])
        optimizer.zero_grad()
        (-logprobs.mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def learner(sharing: Any) -> Callable[[], None]:
        def step() -> None:  # cutting the batch is part of it
            (micro_batches,) = shard(rows, 1, replace(packing, prefix_sharing=sharing))
            rank.learn([micro_batches])

        return step

    ways = {"floor": floor, "alone": learner("off"), "shared": learner("auto")}
    for way in ways.values():  # what is done once: allocations, DeepSpeed's first step
        way()
    return summary(case, rows, seconds_in_turn(ways, case.repeats), over=["floor"])


def started_rank(case: Case, directory: str, threads: int) -> tuple[Any, Packing]:
    """A learner rank in this process."""
    from learner.engine import LearnerOptions
    from learner.rank import LearnerRank

    learner = LearnerConfig(
        zero_stage=0,
        micro_batch_tokens=case.micro_batch_tokens,
        threads_per_rank=threads,
        prefix_sharing="on",
    )
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    rank = LearnerRank(0, LearnerOptions(directory, "float32", 1.0, 0, learner, ObjectiveConfig(), (), 1000))
    rank.start(*rank.rendezvous())
    return rank, rank.packing()


def summary(
    case: Case, rows: Sequence[Row], seconds: dict[str, list[float]], over: Sequence[str]
) -> dict[str, Any]:
    """Times, and how many times as long each of `over` takes as each other way."""
    middle = medians(seconds)
    (shared,) = shard(rows, 1, Packing(case.micro_batch_tokens, "on"))
    return {
        "case": asdict(case),
        "tokens": sum(row.tokens for row in rows),
        "tokens_with_shared_prompts": sum(computed_tokens(bundle) for batch in shared for bundle in batch),
        "seconds": seconds,
        "median_s": middle,
        "ratios": {
            f"{reference} / {way}": round(middle[reference] / value, 3)
            for reference in over
            for way, value in middle.items()
            if way not in over
        },
    }


if __name__ == "__main__":
    main()
