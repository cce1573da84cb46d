"""One learner rank: a Ray actor that holds a DeepSpeed engine.

All ranks are called together, with the same method, by `learner/group.py`. A rank never sees rewards or groups: it
gets weighed micro-batches, adds up their loss, steps, and publishes the weights.
"""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from cluster.config import LearnerConfig, ObjectiveConfig
from cluster.contracts import Publication
from learner.batching import MicroBatch, Packing
from learner.objective_table import resolve
from learner.rate_schedule import rate_share


@dataclass(frozen=True, slots=True)
class LearnerOptions:
    """What a rank needs to build its engine."""

    model: str
    dtype: str
    temperature: float
    seed: int
    learner: LearnerConfig
    objective: ObjectiveConfig
    probe_tokens: tuple[tuple[int, ...], ...]
    steps: int
    """Optimiser steps of the whole run, over which the learning rate is scheduled."""
    max_context_tokens: int | None = None
    """Longest prompt and response together; None if that is not known."""


class LearnerRank:
    """Rank `rank` of `options.learner.ranks`. Made into an actor by `LearnerGroup`."""

    def __init__(self, rank: int, options: LearnerOptions) -> None:
        self._rank = rank
        self._options = options

    def rendezvous(self) -> tuple[str, int]:
        """This node's address and a port that is free on it."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def start(self, address: str, port: int) -> int:
        """Join the other ranks and build the engine. Returns the process id."""
        options = self._options
        os.environ |= {
            "RANK": str(self._rank),
            "WORLD_SIZE": str(options.learner.ranks),
            "LOCAL_RANK": "0",  # Ray shows each rank its own devices only
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
        }
        import deepspeed
        import torch
        from transformers import AutoModelForCausalLM

        from learner.policy import prepare_policy

        torch.manual_seed(options.seed)
        on_gpu = options.learner.gpus_per_rank > 0
        if not on_gpu:
            torch.set_num_threads(options.learner.threads_per_rank)
        deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", verbose=False)
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
        model.train()
        if options.learner.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        learner = options.learner
        policy, self._packing = prepare_policy(model, learner, options.max_context_tokens)
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=learner.learning_rate,
            betas=(learner.adam_beta1, learner.adam_beta2),
            weight_decay=learner.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, partial(rate_share, steps=options.steps, learner=learner)
        )
        self._engine, *_ = deepspeed.initialize(
            model=policy, optimizer=optimizer, lr_scheduler=schedule, config=self._deepspeed_config()
        )
        return os.getpid()

    def packing(self) -> Packing:
        """How micro-batches are to be cut for this model. Known after `start`, and the same on all ranks."""
        return self._packing

    def _deepspeed_config(self) -> dict[str, Any]:
        learner = self._options.learner
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            # We call step() when the batch is done: the number of micro-batches differs from batch to batch.
            "managed_gradient_accumulation": False,
            "gradient_clipping": learner.max_gradient_norm,
            "zero_optimization": {"stage": learner.zero_stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": self._options.dtype == "bfloat16"},
            "steps_per_print": 10**9,
        }

    def learn(self, mini_batches: Sequence[Sequence[MicroBatch]]) -> list[dict[str, float]]:
        """One optimiser step per mini-batch. Returns this rank's sums (see `LearnerGroup`), one dict per step.

        π_old is the policy before the first of these steps: with one step it is π_θ itself and costs nothing, with
        several it is computed for the later ones before the first is taken.
        """
        old_logprobs = [None, *(self._all_logprobs(micro_batches) for micro_batches in mini_batches[1:])]
        return [
            self._step(micro_batches, old)
            for micro_batches, old in zip(mini_batches, old_logprobs, strict=True)
        ]

    def _all_logprobs(self, micro_batches: Sequence[MicroBatch]) -> list[Any]:
        import torch

        from learner.logprobs import TokenBatch, response_logprobs

        with torch.no_grad():
            return [
                response_logprobs(
                    self._engine,
                    TokenBatch.from_micro_batch(micro_batch, self._engine.device),
                    self._options.temperature,
                )[0]
                for micro_batch in micro_batches
            ]

    def _step(self, micro_batches: Sequence[MicroBatch], old_logprobs: list[Any] | None) -> dict[str, float]:
        sums: dict[str, float] = defaultdict(float)
        for index, micro_batch in enumerate(micro_batches):
            self._accumulate(micro_batch, old_logprobs[index] if old_logprobs else None, sums)
        sums["learning_rate"] = self._engine.get_lr()[0]
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        if norm is not None:
            sums["gradient_norm"] = float(norm)
        return dict(sums)

    def _accumulate(self, micro_batch: MicroBatch, old_BT: Any, sums: dict[str, float]) -> None:
        """Forward and backward of one micro-batch; add what is to be known of it to `sums`."""
        from learner.logprobs import TokenBatch, response_logprobs
        from learner.objectives import policy_loss, truncated_importance_weights

        importance_cap = self._options.objective.importance_cap
        batch = TokenBatch.from_micro_batch(micro_batch, self._engine.device)
        logprobs_BT, entropy_BT = response_logprobs(self._engine, batch, self._options.temperature)
        mask_BT = batch.response_mask_BT
        if old_BT is None:
            old_BT = logprobs_BT.detach()
        weights_BT = None
        if importance_cap is not None:
            weights_BT = truncated_importance_weights(
                old_BT, batch.sampler_logprobs_BT, mask_BT, importance_cap
            )
        result = policy_loss(
            resolve(self._options.objective),
            logprobs_BT,
            old_BT,
            batch.advantages_B,
            batch.scales_B,
            mask_BT,
            weights_BT,
        )
        # DeepSpeed averages gradients over the ranks; the denominators in `scales_B` are the whole batch's already.
        self._engine.backward(result.loss * self._options.learner.ranks)

        counted_BT = mask_BT & (batch.scales_B[:, None] != 0)  # not the empty micro-batch's token
        gap_BT = (old_BT - batch.sampler_logprobs_BT).abs() * counted_BT
        sums["loss"] += result.loss.item()
        sums["tokens"] += counted_BT.sum().item()
        sums["entropy"] += (entropy_BT * counted_BT).sum().item()
        sums["logprob_gap"] += gap_BT.sum().item()
        sums["max_logprob_gap"] = max(sums["max_logprob_gap"], gap_BT.max().item())
        sums["clipped_low"] += result.clipped_low_tokens.item()
        sums["clipped_high"] += result.clipped_high_tokens.item()

    @contextmanager
    def _whole_weights(self) -> Iterator[dict[str, Any]]:
        """All parameters under their checkpoint names, tied ones once, whole on every rank. A collective under
        ZeRO 3."""
        import deepspeed

        module = self._engine.module.model
        partitioned = self._options.learner.zero_stage == 3
        with deepspeed.zero.GatheredParameters(list(module.parameters()), enabled=partitioned):
            yield {name: parameter.detach() for name, parameter in module.named_parameters()}

    def publish(self, version: int) -> Publication | None:
        """Put the current weights into the object store. Rank 0 returns the publication, the others None."""
        from safetensors.torch import save

        from learner.logprobs import sequence_logprobs

        probes = tuple(
            sequence_logprobs(self._engine.module, tokens, self._engine.device)
            for tokens in self._options.probe_tokens
        )
        with self._whole_weights() as weights:
            if self._rank != 0:
                return None
            packed = save({name: weight.cpu().contiguous() for name, weight in weights.items()})
        return Publication(
            version=version,
            weights=ray.put(np.frombuffer(packed, dtype=np.uint8)),
            probe_tokens=self._options.probe_tokens,
            probe_logprobs=probes,
        )

    def export(self, directory: Path) -> None:
        """Write the current model and its tokenizer as a Hugging Face directory."""
        from transformers import AutoTokenizer

        with self._whole_weights() as weights:
            if self._rank != 0:
                return
            state = {name: weight.cpu().clone() for name, weight in weights.items()}
        self._engine.module.model.save_pretrained(directory, state_dict=state)
        AutoTokenizer.from_pretrained(self._options.model).save_pretrained(directory)

    def save(self, directory: Path) -> None:
        """Write this rank's part of the training state under `directory`. The caller marks it complete (DeepSpeed's own
        `latest` file is written too early to be trusted)."""
        self._engine.save_checkpoint(str(directory), tag="state", save_latest=False)

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote. A collective.

        Raises:
            RuntimeError: nothing was restored.
        """
        path, _ = self._engine.load_checkpoint(str(directory), tag="state")
        if path is None:
            raise RuntimeError(f"DeepSpeed found no training state in {directory}")
