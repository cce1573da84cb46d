"""One learner rank: a Ray actor that holds a DeepSpeed engine.

All ranks are called together, with the same method, by `learner/group.py`. A rank never sees rewards or groups: it
gets weighed micro-batches, adds up their loss, steps, and publishes the weights.
"""

from __future__ import annotations

import os
import socket
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
from learner.batching import MicroBatch
from learner.rate_schedule import rate_share
from learner.reference import FrozenReference
from learner.statistics import merge


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


class LearnerRank:
    """Rank `rank` of `options.learner.ranks`. Made into an actor by `LearnerGroup`."""

    def __init__(self, rank: int, options: LearnerOptions) -> None:
        self._rank = rank
        self._options = options
        self._reference: FrozenReference | None = None

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
            model=model, optimizer=optimizer, lr_scheduler=schedule, config=self._deepspeed_config()
        )
        if options.objective.kl_beta > 0:
            self._reference = FrozenReference(
                options.model, options.dtype, learner.zero_stage, self._engine.device
            )
        return os.getpid()

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
        """One optimiser step per mini-batch and epoch. Returns this rank's statistics, one dict per step.

        π_old is the policy before the first of these steps. For the first mini-batch that is π_θ as its step finds it,
        and costs nothing; for the others it is computed before the first step is taken.
        """
        old_logprobs = [None, *(self._all_logprobs(micro_batches) for micro_batches in mini_batches[1:])]
        statistics = []
        for _ in range(self._options.learner.epochs_per_batch):
            for index, micro_batches in enumerate(mini_batches):
                of_step, old_logprobs[index] = self._step(micro_batches, old_logprobs[index])
                statistics.append(of_step)
        return statistics

    def _all_logprobs(self, micro_batches: Sequence[MicroBatch]) -> list[Any]:
        import torch

        from learner.logprobs import TokenBatch, response_logprobs

        with torch.no_grad():
            return [
                response_logprobs(
                    self._engine, TokenBatch.from_rows(rows, self._engine.device), self._options.temperature
                )[0]
                for rows in micro_batches
            ]

    def _step(
        self, micro_batches: Sequence[MicroBatch], old_logprobs: list[Any] | None
    ) -> tuple[dict[str, float], list[Any]]:
        """One optimiser step. Returns its statistics, and the log-probabilities of π_old that it was taken with."""
        parts, used = [], []
        for index, rows in enumerate(micro_batches):
            of_micro_batch, old_BT = self._accumulate(rows, old_logprobs[index] if old_logprobs else None)
            parts.append(of_micro_batch)
            used.append(old_BT)
        statistics = merge(parts) | {"learning_rate": self._engine.get_lr()[0]}
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        if norm is not None:
            statistics["gradient_norm"] = float(norm)
        return statistics, used

    def _accumulate(self, rows: MicroBatch, old_BT: Any) -> tuple[dict[str, float], Any]:
        """Forward and backward of one micro-batch: its statistics, and its log-probabilities under π_old."""
        from learner.logprobs import TokenBatch, response_logprobs
        from learner.objectives.loss import PolicyLogprobs, policy_loss

        objective, temperature = self._options.objective, self._options.temperature
        batch = TokenBatch.from_rows(rows, self._engine.device)
        logprobs_BT, entropy_BT = response_logprobs(
            self._engine, batch, temperature, entropy_gradient=objective.entropy_bonus > 0
        )
        if old_BT is None:
            old_BT = logprobs_BT.detach()
        reference_BT = self._reference.logprobs(batch, temperature) if self._reference else None
        result = policy_loss(
            objective,
            PolicyLogprobs(logprobs_BT, old_BT, batch.sampler_logprobs_BT, reference_BT),
            entropy_BT,
            batch.advantages_B,
            batch.scales_B,
            batch.response_mask_BT,
        )
        # DeepSpeed averages gradients over the ranks; the denominators in `scales_B` are the whole batch's already.
        self._engine.backward(result.loss * self._options.learner.ranks)
        return result.statistics, old_BT

    @contextmanager
    def _whole_weights(self) -> Iterator[dict[str, Any]]:
        """All parameters under their checkpoint names, tied ones once, whole on every rank. A collective under
        ZeRO 3."""
        import deepspeed

        module = self._engine.module
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
        self._engine.module.save_pretrained(directory, state_dict=state)
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
