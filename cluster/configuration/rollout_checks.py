"""Check the rollout settings: they are consistent with each other and with the learner's. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.configuration.messages import closest
from cluster.core.config import RunConfig
from cluster.core.problem import Problem
from cluster.core.weight_transport import WEIGHT_TRANSPORTS


def check_rollout(config: RunConfig) -> Iterator[Problem]:
    """Report rollout settings that contradict each other or the learner's settings."""
    yield from _check_batch(config)
    yield from _check_budget(config)
    yield from _check_fleet_size(config)
    yield from _check_limits(config)
    yield from _check_weight_transport(config)
    yield from _check_sleep(config)


def _check_batch(config: RunConfig) -> Iterator[Problem]:
    """Report a batch that cannot be divided, and more prompts in flight than the bound on staleness allows."""
    rollout, mini_batches = config.rollout, config.learner.mini_batches
    if rollout.prompts_per_step % mini_batches:
        yield Problem(
            "rollout.prompts_per_step",
            f"{rollout.prompts_per_step} prompts cannot be divided into learner.mini_batches = {mini_batches} equal "
            "parts",
            f"take a multiple of {mini_batches}",
        )
    if rollout.oversampling is not None and rollout.oversampling > rollout.max_staleness + 1:
        yield Problem(
            "rollout.oversampling",
            f"with {rollout.oversampling:g} batches in flight, samples become staler than rollout.max_staleness = "
            f"{rollout.max_staleness} allows",
            f"lower it to {rollout.max_staleness + 1} or less, or raise rollout.max_staleness",
        )


def _check_budget(config: RunConfig) -> Iterator[Problem]:
    """Report a budget of responses that the first responses to the prompts of a batch would exceed."""
    rollout, least = config.rollout, config.responses_per_step
    if rollout.adaptive_budget is not None and rollout.adaptive_budget < least:
        yield Problem(
            "rollout.adaptive_budget",
            f"{rollout.adaptive_budget} responses are fewer than those that every batch begins with: "
            f"rollout.prompts_per_step × rollout.responses_per_prompt = {least}",
            f"set it to {least} or more, or leave it out",
        )


def _check_fleet_size(config: RunConfig) -> Iterator[Problem]:
    """Report an initial number of workers outside the limits of the automatic adjustment."""
    rollout = config.rollout
    if rollout.max_workers is not None and not rollout.min_workers <= rollout.workers <= rollout.max_workers:
        yield Problem(
            "rollout.workers",
            f"{rollout.workers} is not between rollout.min_workers = {rollout.min_workers} and rollout.max_workers = "
            f"{rollout.max_workers}",
            "start with a number between them",
        )


def _check_limits(config: RunConfig) -> Iterator[Problem]:
    """Report limits of a response that leave nothing for its prompt or its request."""
    rollout = config.rollout
    if rollout.response_timeout_s is not None and rollout.response_timeout_s >= rollout.request_timeout_s:
        yield Problem(
            "rollout.response_timeout_s",
            f"{rollout.response_timeout_s:g} s is not below rollout.request_timeout_s = "
            f"{rollout.request_timeout_s:g}, after which the worker is replaced",
            "lower it, or raise rollout.request_timeout_s",
        )
    if rollout.max_response_tokens >= config.model.max_context_tokens:
        yield Problem(
            "rollout.max_response_tokens",
            f"{rollout.max_response_tokens} leaves no tokens for a prompt in model.max_context_tokens = "
            f"{config.model.max_context_tokens}",
            "lower it, or raise model.max_context_tokens",
        )


def _check_weight_transport(config: RunConfig) -> Iterator[Problem]:
    """Report an unknown weight transport, and one that cannot connect the devices of the run."""
    name = config.rollout.weight_transport
    if name not in WEIGHT_TRANSPORTS:
        known = f"known weight transports: {', '.join(WEIGHT_TRANSPORTS)}"
        near = closest(name, WEIGHT_TRANSPORTS)
        yield Problem(
            "rollout.weight_transport",
            f"there is no weight transport {name!r}",
            f"did you mean {near}? ({known})" if near else f"choose one of the {known}",
        )
        return
    on_gpus = bool(config.rollout.gpus_per_worker), bool(config.learner.gpus_per_rank)
    if WEIGHT_TRANSPORTS[name].keeps_versions and on_gpus[0] != on_gpus[1]:
        yield Problem(
            "rollout.weight_transport",
            f"{name} cannot send weights between GPUs and CPUs (rollout.gpus_per_worker, learner.gpus_per_rank)",
            f"set it to {_separate_transports()}",
        )


def _check_sleep(config: RunConfig) -> Iterator[Problem]:
    """Report sleeping engines that would be needed while they sleep."""
    rollout = config.rollout
    if not rollout.sleep_while_learning:
        return
    if rollout.max_staleness:
        yield Problem(
            "rollout.sleep_while_learning",
            f"with rollout.max_staleness = {rollout.max_staleness} workers sample during training",
            "leave it out, or set rollout.max_staleness to 0",
        )
    transport = WEIGHT_TRANSPORTS.get(rollout.weight_transport)
    if transport is not None and transport.joins_processes:
        yield Problem(
            "rollout.sleep_while_learning",
            f"{rollout.weight_transport} cannot send weights to engines that share a GPU with the learner, because "
            "NCCL needs one GPU per process",
            "set rollout.weight_transport to pull or ipc",
        )


def _separate_transports() -> str:
    """Return the names of the transports that work wherever learner and engines are."""
    return " or ".join(name for name, transport in WEIGHT_TRANSPORTS.items() if not transport.keeps_versions)
