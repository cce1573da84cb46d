"""Part 7: one learner step with each ZeRO stage and with offloading, against the same step in plain PyTorch in float32
on the CPU."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.gpu_check.findings import Findings, Settings
from benchmarks.gpu_check.models import (
    SMALL,
    TINY,
    each_alone,
    random_bundle,
    relative_difference,
    save_model,
)
from cluster.core.actor_options import LearnerOptions
from cluster.core.config import LearnerConfig, ObjectiveConfig
from learner.engine.deepspeed_engine import build_engine
from learner.engine.process_setup import join_ranks, open_store, operator_folder, remove_stale_lock
from learner.engine.update import PolicyUpdate
from learner.model.batching import Bundle, Packing, shard
from learner.model.policy import Policy, TokenBatch, response_logprobs
from learner.objective.loss import PolicyLogprobs, policy_loss

VARIANTS: tuple[tuple[int, str], ...] = (
    (0, "none"),
    (1, "none"),
    (2, "none"),
    (3, "none"),
    (2, "optimizer"),
    (3, "parameters"),
)
"""ZeRO stages, with what is offloaded."""
LEARNING_RATE = 1e-3
ADDRESS = "127.0.0.1"
WEIGHTS_LIMIT = 0.05
"""The largest relative difference of the change of the weights in float32. AdamW's first step has nearly the size of
the learning rate for each weight, so that rounding can turn the few whose gradient is nearly 0."""
NORM_LIMITS = {"float32": 1e-3, "bfloat16": 0.1}
"""The largest relative difference of the gradient's norm."""
TIMEOUT_S = 120.0


def check_steps(settings: Settings, findings: Findings) -> None:
    # DeepSpeed reads it when it is imported.
    os.environ["DS_ACCELERATOR"] = settings.device
    sizes = TINY if settings.smoke else SMALL
    unit = 8 if settings.smoke else 64
    bundles = [
        random_bundle(4 * unit, (unit, 2 * unit, unit, unit // 2), sizes["vocab_size"], seed=1),
        random_bundle(2 * unit, (unit, unit), sizes["vocab_size"], seed=2),
    ]
    model = save_model(Path(settings.scratch) / "model", sizes)
    torch.set_num_threads(min(os.cpu_count() or 1, 8))
    findings.begin("the step in plain PyTorch on the CPU")
    expected = plain_step(model, bundles)
    findings.begin("joining the process group")
    if not settings.on_gpu:
        remove_stale_lock(operator_folder())
    join_ranks(
        open_store(ADDRESS),
        0,
        1,
        on_gpu=settings.on_gpu,
        meet_timeout_s=TIMEOUT_S,
        collective_timeout_s=TIMEOUT_S,
    )
    for dtype in ("float32", "bfloat16") if settings.on_gpu else ("float32",):
        for zero_stage, offload in VARIANTS:
            _variant(settings, findings, model, bundles, expected, dtype, zero_stage, offload)


def _variant(
    settings: Settings,
    findings: Findings,
    model: Path,
    bundles: Sequence[Bundle],
    expected: tuple[dict[str, Tensor], float],
    dtype: str,
    zero_stage: int,
    offload: str,
) -> None:
    """Do the step with one variant, and record how it differs. An error of one variant leaves the others to run."""
    name = f"ZeRO {zero_stage}, {dtype}" + ("" if offload == "none" else f", {offload} offloaded")
    findings.begin(name)
    row: dict[str, Any] = {"ZeRO": zero_stage, "offload": offload, "type": dtype}
    try:
        change, norm = engine_step(settings, model, bundles, dtype, zero_stage, offload)
    except Exception as error:  # it may be any error of DeepSpeed or CUDA, and the report shows it
        traceback.print_exc()
        row["outcome"] = f"{type(error).__name__}: {error}"[:200]
        close, found = False, row["outcome"]
    else:
        change_off = relative_difference(change, expected[0])
        norm_off = abs(norm - expected[1]) / expected[1]
        row |= {"outcome": "done", "change of the weights": change_off, "gradient norm": norm_off}
        close = norm_off <= NORM_LIMITS[dtype] and (dtype != "float32" or change_off <= WEIGHTS_LIMIT)
        found = f"weights differ by {change_off:.2g}, the gradient's norm by {norm_off:.2g}"
    findings.row("differences from float32 on the CPU, relative", row)
    findings.check(
        f"a step with {name} is that of plain PyTorch",
        close,
        found,
        f"Choose another learner.zero_stage or learner.offload than {zero_stage} with {offload}, and report it.",
    )


def engine_step(
    settings: Settings, model: Path, bundles: Sequence[Bundle], dtype: str, zero_stage: int, offload: str
) -> tuple[dict[str, Tensor], float]:
    """Do one step as a learner rank does. Return the change of each weight and the gradient's norm."""
    import deepspeed

    learner = LearnerConfig.model_validate(
        {
            "zero_stage": zero_stage,
            "offload": offload,
            "learning_rate": LEARNING_RATE,
            "gpus_per_rank": 1.0 if settings.on_gpu else 0.0,
            "micro_batch_tokens": max(sample.tokens for bundle in bundles for sample in bundle) * 2,
        }
    )
    options = LearnerOptions(str(model), dtype, 1.0, 0, learner, ObjectiveConfig(), (), 1000)
    engine, packing = build_engine(options)

    def weights() -> dict[str, Tensor]:
        # It yields the parameters as they are below ZeRO 3.
        with deepspeed.zero.GatheredParameters(list(engine.module.parameters()), enabled=zero_stage == 3):
            return {
                name: each.detach().float().cpu().clone() for name, each in engine.module.named_parameters()
            }

    before = weights()
    (micro_batches,) = shard([sample for bundle in bundles for sample in bundle], 1, packing)
    (statistics,) = PolicyUpdate(engine, options).learn([micro_batches])
    change = _change(before, weights())
    engine.destroy()
    if settings.on_gpu:
        torch.cuda.empty_cache()
    return change, float(statistics["grad_norm"])


def plain_step(model: Path, bundles: Sequence[Bundle]) -> tuple[dict[str, Tensor], float]:
    """Do the same step without DeepSpeed, in float32 on the CPU, with every response alone."""
    defaults = LearnerConfig()
    policy = Policy(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train())
    optimizer = torch.optim.AdamW(
        policy.parameters(),
        lr=LEARNING_RATE,
        betas=(defaults.adam_beta1, defaults.adam_beta2),
        weight_decay=defaults.weight_decay,
    )
    before = {name: each.detach().clone() for name, each in policy.named_parameters()}
    samples = [sample for (sample,) in each_alone(bundles)]
    (micro_batches,) = shard(samples, 1, Packing(4 * max(each.tokens for each in samples), "off"))
    for micro_batch in micro_batches:
        batch = TokenBatch.from_micro_batch(micro_batch, torch.device("cpu"))
        logprobs_BT, entropy_BT = response_logprobs(policy, batch, 1.0)
        result = policy_loss(
            ObjectiveConfig(),
            PolicyLogprobs(logprobs_BT, logprobs_BT.detach(), batch.sampler_logprobs_BT),
            entropy_BT,
            batch.advantages_B,
            batch.scales_B,
            batch.response_mask_BT,
        )
        result.loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), defaults.max_grad_norm)
    optimizer.step()
    return _change(before, dict(policy.named_parameters())), float(norm)


def _change(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: after[name].detach() - each for name, each in before.items()}
