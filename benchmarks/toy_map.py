"""Where α matters, in a toy: the product's objectives train a policy of one matrix, without engines and without Ray.

    python benchmarks/toy_map.py             about half an hour on one core
    python benchmarks/toy_map.py --smoke     a few steps of a few runs, to check that it works

A response has three tokens, and is correct if all three are the right ones of its prompt. The policy is a softmax over
a linear function of the prompt's features plus a fixed bias towards the right tokens, which sets the success rate of
the start. All prompts share the matrix, so that pushing down the incorrect responses of one prompt moves the
probabilities of others, as in a language model. Responses have one length: nothing here shows the effect of a
normalization by length.

Batches, advantages, α, scales and surrogates are computed by the functions that a run uses (`learner.objective`). A
batch has 32 prompts × 16 responses; it is split into mini-batches and repeated for several epochs as in a run. All
seeds are trained at once, each with its own matrix and its own Adam.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from torch import Tensor

from benchmarks.report import write_cases
from cluster.core.config import ObjectiveConfig
from cluster.metrics.intervals import mean_estimate, paired_difference
from cluster.metrics.run_measures import EARLY_FRACTION
from learner.objective.objectives import Objective, Tokens, resolve, sign_fractions
from learner.objective.training_batch import group_advantages, hysteretic

PROMPTS, RESPONSES, TOKENS = 32, 16, 3
VOCABULARY, FEATURES, ALL_PROMPTS = 12, 24, 400
ADAM = (0.9, 0.95)
MAX_GRAD_NORM = 1.0
BASELINE = "grpo"
RATES = (0.03, 0.1, 0.3, 1.0)
Measures = Mapping[str, list[float]]
"""The values of each measure by seed."""


@dataclass(frozen=True)
class Setting:
    """One cell of the map."""

    start: float
    """The success rate of the policy that training begins with."""
    mini_batches: int
    epochs: int
    rate: float
    batches: int
    seeds: int


@dataclass(frozen=True)
class World:
    """The prompts of all seeds, and the policy's fixed bias."""

    features_SNF: Tensor
    right_SNT: Tensor
    bias_SNTV: Tensor


@dataclass(frozen=True)
class Part:
    """One optimizer batch of all seeds: B = prompts × responses rows for each seed."""

    prompts_SP: Tensor
    tokens_SBT: Tensor
    old_SBT: Tensor
    advantages_SB: Tensor
    scales_SB: Tensor


def objectives() -> dict[str, tuple[ObjectiveConfig, Objective]]:
    """Return the objectives of the map by name."""
    configs = {
        "grpo": ObjectiveConfig(name="grpo"),
        "hpo 0.6": ObjectiveConfig(name="hpo", alpha=0.6),
        "hpo 0.3": ObjectiveConfig(name="hpo", alpha=0.3),
        "hpo 0": ObjectiveConfig(name="hpo", alpha=0.0),
        "a_hpo 0.3": ObjectiveConfig(name="a_hpo", alpha_min=0.3),
        "a_hpo 0.1": ObjectiveConfig(name="a_hpo", alpha_min=0.1),
        "a_hpo 0": ObjectiveConfig(name="a_hpo", alpha_min=0.0),
        "dapo": ObjectiveConfig(name="dapo"),
        "gspo": ObjectiveConfig(name="gspo"),
        "sapo": ObjectiveConfig(name="sapo"),
        "cispo": ObjectiveConfig(name="cispo"),
        "grpo, clip_high 0.5": ObjectiveConfig(name="grpo", clip_high=0.5),
        "grpo_dual_clip 3": ObjectiveConfig(name="grpo_dual_clip", dual_clip=3.0),
        "grpo_dual_clip 1.2": ObjectiveConfig(name="grpo_dual_clip", dual_clip=1.2),
        "a_hpo_dual_clip 1.2": ObjectiveConfig(name="a_hpo_dual_clip", dual_clip=1.2),
    }
    return {name: (config, resolve(config)) for name, config in configs.items()}


def make_world(setting: Setting, chance: torch.Generator) -> World:
    """Draw the features of all prompts and their right tokens."""
    size = (setting.seeds, ALL_PROMPTS, FEATURES)
    features_SNF = torch.randn(size, generator=chance) / math.sqrt(FEATURES)
    truth_STFV = torch.randn((setting.seeds, TOKENS, FEATURES, VOCABULARY), generator=chance)
    right_SNT = torch.einsum("snf,stfv->sntv", features_SNF, truth_STFV).argmax(dim=-1)
    of_token = setting.start ** (1 / TOKENS)
    bias = math.log(of_token * (VOCABULARY - 1) / (1 - of_token))
    bias_SNTV = torch.zeros((*right_SNT.shape, VOCABULARY)).scatter_(3, right_SNT[..., None], bias)
    return World(features_SNF, right_SNT, bias_SNTV)


def of_prompts(values_SN: Tensor, prompts_SP: Tensor) -> Tensor:
    """Return the values of some prompts [S, P, …]."""
    return values_SN[torch.arange(len(values_SN))[:, None], prompts_SP]


def logprobs_of(world: World, matrix_STFV: Tensor, prompts_SP: Tensor) -> Tensor:
    """Return log π of all tokens [S, P, T, V]."""
    features_SPF = of_prompts(world.features_SNF, prompts_SP)
    logits_SPTV = torch.einsum("spf,stfv->sptv", features_SPF, matrix_STFV)
    return (logits_SPTV + of_prompts(world.bias_SNTV, prompts_SP)).log_softmax(dim=-1)


def taken(logprobs_SPTV: Tensor, tokens_SBT: Tensor) -> Tensor:
    """Return log π of the sampled tokens [S, B, T]."""
    logprobs_SBTV = logprobs_SPTV.repeat_interleave(RESPONSES, dim=1)
    return logprobs_SBTV.gather(3, tokens_SBT[..., None]).squeeze(3)


def sample(
    world: World,
    matrix_STFV: Tensor,
    setting: Setting,
    chance: torch.Generator,
    config: ObjectiveConfig,
    objective: Objective,
) -> tuple[list[Part], np.ndarray, Tensor]:
    """Sample one batch of each seed. Return its optimizer batches, and the mean rewards and the entropies by seed."""
    prompts_SP = torch.randint(0, ALL_PROMPTS, (setting.seeds, PROMPTS), generator=chance)
    logprobs_SPTV = logprobs_of(world, matrix_STFV, prompts_SP)
    rows = logprobs_SPTV.exp().repeat_interleave(RESPONSES, dim=1).flatten(0, 2)
    tokens_SBT = torch.multinomial(rows, 1, generator=chance).view(setting.seeds, -1, TOKENS)
    right_SBT = of_prompts(world.right_SNT, prompts_SP).repeat_interleave(RESPONSES, dim=1)
    rewards_SPG = (
        (tokens_SBT == right_SBT).all(dim=2).view(setting.seeds, PROMPTS, RESPONSES).double().numpy()
    )
    old_SBT = taken(logprobs_SPTV, tokens_SBT)
    size = PROMPTS // setting.mini_batches
    parts = []
    for first in range(0, PROMPTS, size):
        factors = [_factors(rewards[first : first + size], config, objective) for rewards in rewards_SPG]
        of_rows = slice(first * RESPONSES, (first + size) * RESPONSES)
        advantages_SB, scales_SB = (
            torch.tensor(np.stack(each)).float() for each in zip(*factors, strict=True)
        )
        part = Part(
            prompts_SP[:, first : first + size],
            tokens_SBT[:, of_rows],
            old_SBT[:, of_rows],
            advantages_SB,
            scales_SB,
        )
        parts.append(part)
    entropy_S = -(logprobs_SPTV.exp() * logprobs_SPTV).sum(dim=-1).mean(dim=(1, 2))
    return parts, rewards_SPG.mean(axis=(1, 2)), entropy_S


def _factors(
    rewards_PG: np.ndarray, config: ObjectiveConfig, objective: Objective
) -> tuple[np.ndarray, np.ndarray]:
    """Return w_i A_i and the scales of the responses of one optimizer batch, [B] each."""
    valid = np.ones(rewards_PG.shape, dtype=bool)
    advantages = group_advantages(rewards_PG, valid, objective.advantage_scaling)
    alpha = objective.alpha_rule(sign_fractions(advantages), config)
    lengths = np.full(rewards_PG.size, TOKENS)
    return hysteretic(advantages, alpha).ravel(), objective.scale_rule(lengths, TOKENS)


class Adam:
    """Adam with a matrix, moments and a limit of the gradient's norm for each seed. torch's would have one limit."""

    def __init__(self, matrix_STFV: Tensor, rate: float) -> None:
        self._rate = rate
        self._steps = 0
        self._moments = torch.zeros_like(matrix_STFV), torch.zeros_like(matrix_STFV)

    def step(self, matrix_STFV: Tensor, gradient: Tensor) -> Tensor:
        """Return the matrices after one step."""
        norms = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)
        gradient = gradient * (MAX_GRAD_NORM / norms).clamp(max=1)[:, None, None, None]
        self._steps += 1
        first, second = (
            beta * moment + (1 - beta) * power
            for beta, moment, power in zip(ADAM, self._moments, (gradient, gradient**2), strict=True)
        )
        self._moments = first, second
        unbiased, size = (
            moment / (1 - beta**self._steps) for beta, moment in zip(ADAM, (first, second), strict=True)
        )
        return matrix_STFV - self._rate * unbiased / (size.sqrt() + 1e-8)


def learn(world: World, matrix_STFV: Tensor, part: Part, objective: Objective) -> Tensor:
    """Return the gradient of one optimizer batch for each seed."""
    matrix_STFV = matrix_STFV.requires_grad_(True)
    new_SBT = taken(logprobs_of(world, matrix_STFV, part.prompts_SP), part.tokens_SBT)
    new_RT, old_RT = new_SBT.flatten(0, 1), part.old_SBT.flatten(0, 1)
    tokens = Tokens(
        new_RT,
        new_RT - old_RT,
        part.advantages_SB.flatten()[:, None],
        torch.ones_like(new_RT, dtype=torch.bool),
    )
    values_RT = objective.surrogate(tokens, objective.bounds).values_BT
    loss = -(part.scales_SB.flatten()[:, None] * values_RT).sum()
    (gradient,) = torch.autograd.grad(loss, matrix_STFV)
    return gradient


def train(setting: Setting, config: ObjectiveConfig, objective: Objective) -> Measures:
    """Train all seeds. Return the measures by seed."""
    chance = torch.Generator().manual_seed(0)
    world = make_world(setting, chance)
    matrix_STFV = torch.zeros((setting.seeds, TOKENS, FEATURES, VOCABULARY))
    adam = Adam(matrix_STFV, setting.rate)
    rewards, entropy_S = [], torch.empty(setting.seeds)
    for _ in range(setting.batches):
        parts, of_batch, entropy_S = sample(world, matrix_STFV.detach(), setting, chance, config, objective)
        rewards.append(of_batch)
        for part in parts * setting.epochs:
            gradient = learn(world, matrix_STFV, part, objective)
            matrix_STFV = adam.step(matrix_STFV.detach(), gradient)
    curve = np.stack(rewards)
    early = curve[: max(1, round(EARLY_FRACTION * len(curve)))]
    return {
        "reward_early": early.mean(axis=0).tolist(),
        "reward_area": curve.mean(axis=0).tolist(),
        "entropy_final": entropy_S.tolist(),
    }


def cells(smoke: bool) -> Iterator[tuple[str, list[Setting]]]:
    """Yield the cells of the map by name, each with a setting for every learning rate."""
    rates, sizes = ((0.1, 0.2), (4, 2)) if smoke else (RATES, (150, 6))
    for start, (mini_batches, epochs) in itertools.product((0.02, 0.07), ((1, 1), (4, 1), (4, 4))):
        name = f"start {start:.0%}, optimizer steps per batch: {mini_batches * epochs}"
        yield name, [Setting(start, mini_batches, epochs, rate, *sizes) for rate in rates]


def summary(found: Mapping[str, Mapping[float, Measures]]) -> dict[str, Any]:
    """Return the results of each objective at its best rate, and the differences from the baseline at its own best one,
    paired by seed. The best rate has the largest area, and is chosen on the same seeds.

    Args:
        found: The measures by objective and rate.
    """
    best = {
        name: max(by_rate, key=lambda rate: fmean(by_rate[rate]["reward_area"]))
        for name, by_rate in found.items()
    }
    baseline = found[BASELINE][best[BASELINE]]
    return {
        name: {
            "area_by_rate": {
                f"{rate:g}": round(fmean(each["reward_area"]), 4) for rate, each in by_rate.items()
            },
            "rate": best[name],
            **{
                measure: _estimates(values, baseline[measure])
                for measure, values in by_rate[best[name]].items()
            },
        }
        for name, by_rate in found.items()
    }


def _estimates(values: Sequence[float], baseline: Sequence[float]) -> dict[str, float]:
    mean, difference = (
        mean_estimate(values),
        paired_difference(dict(enumerate(values)), dict(enumerate(baseline))),
    )
    return {
        "mean": round(mean.mean, 4),
        "half_width": round(mean.half_width or 0.0, 4),
        "difference": round(difference.mean, 4),
        "difference_half_width": round(difference.half_width or 0.0, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="the file of the report")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    parser.add_argument(
        "--only", default="", help="part of the names of the cells to compute, such as 'start 7%%'"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for case, by_rate in cells(arguments.smoke):
        if arguments.only not in case:
            continue
        found = {
            name: {setting.rate: train(setting, *objective) for setting in by_rate}
            for name, objective in objectives().items()
        }
        write_cases("toy_map", {case: {"objectives": summary(found)}}, arguments.output)


if __name__ == "__main__":
    main()
