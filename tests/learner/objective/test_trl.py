"""The same tensors through TRL's own loss (GRPOTrainer._compute_loss): the same value and gradient to 1e-6.

Where TRL differs by design, the test says so. What TRL computes elsewhere (advantages, the importance ratio, the mask
of cut-off responses) is given to it as it would compute it.
"""

from __future__ import annotations

import importlib
from collections import defaultdict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cluster.core.config import ObjectiveConfig
from tests.learner.drawn_batch import MAX_TOKENS, Drawn, DrawnBatch, assert_same_loss

SEEDS = st.integers(0, 10**6)


@pytest.fixture(scope="module")
def trainer_class() -> type:
    """Hide vLLM from TRL, which would load it and thereby patch torch for all later tests."""
    import_utils = importlib.import_module("trl.import_utils")  # not an attribute of `trl`
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_utils, "is_vllm_available", lambda min_version=None: False)
        from trl.trainer.grpo_trainer import GRPOTrainer

    return GRPOTrainer


@pytest.fixture(scope="module")
def rloo_class(trainer_class: type) -> type:
    """Return TRL's trainer for RLOO, loaded after the other one so that vLLM is hidden from it as well."""
    import_utils = importlib.import_module("trl.import_utils")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_utils, "is_vllm_available", lambda min_version=None: False)
        from trl.trainer.rloo_trainer import RLOOTrainer

    return RLOOTrainer


@dataclass
class Trl:
    """TRL's loss of our batch. `settings` are TRL's own settings, by its names."""

    trainer_class: type
    settings: dict[str, Any]
    advantage: str = "advantage"
    """The function that selects the advantage of a `Drawn`."""
    importance_sampling: Any = None
    """The importance ratio of a `Drawn` that TRL computes when it samples with vLLM: [T] or [1]."""
    keep: Any = None
    """The function that tells if a `Drawn` is not masked."""

    def __call__(self, batch: list[Drawn]) -> Tensor:
        def padded(rows: list[Tensor]) -> Tensor:
            return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

        kept = [self.keep is None or self.keep(r) for r in batch]
        mask = padded([torch.full((len(r),), int(keep)) for r, keep in zip(batch, kept, strict=True)])
        logprobs, entropies = padded([r.new for r in batch]), padded([r.entropy for r in batch])
        inputs = {
            "prompt_ids": mask[:, :1],
            "prompt_mask": mask[:, :1],
            "completion_ids": mask,
            "completion_mask": mask,
            "advantages": torch.tensor([getattr(r, self.advantage) for r in batch], dtype=torch.float64),
            "old_per_token_logps": padded([r.old for r in batch]),
            "old_logps": torch.stack([r.old.sum() for r in batch]),
            "ref_per_token_logps": padded([r.reference for r in batch]),
            "num_items_in_batch": mask.sum(),
        }
        if self.importance_sampling is not None:
            inputs["importance_sampling_ratio"] = padded([self.importance_sampling(r) for r in batch])

        class Trainer(self.trainer_class):  # type: ignore[name-defined, misc]
            """The trainer without its __init__, which loads models. The model's output is given."""

            def __init__(self, attributes: dict[str, Any]) -> None:
                self.__dict__.update(attributes)

            def _get_per_token_logps_and_entropies(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor, None]:
                return logprobs, entropies, None

        trainer = Trainer(self._attributes())
        return trainer._compute_loss(trainer.model, inputs)

    def _attributes(self) -> dict[str, Any]:
        defaults: dict[str, Any] = {
            "loss_type": "grpo",
            "importance_sampling_level": "token",
            "epsilon_low": 0.2,
            "epsilon_high": 0.2,
            "beta": 0.0,
            "entropy_coef": 0.0,
            "delta": None,
        }
        settings = defaults | self.settings
        return settings | {
            "args": SimpleNamespace(
                delta=settings["delta"], use_bias_correction_kl=False, report_to=[],
                sapo_temperature_pos=1.0, sapo_temperature_neg=1.05,
            ),
            "_entropy_bonus_enabled": settings["entropy_coef"] != 0,
            "use_adaptive_entropy": False,
            "top_entropy_quantile": 1.0,
            "off_policy_mask_threshold": None,
            "aux_loss_enabled": False,
            "use_vllm": self.importance_sampling is not None,
            "vllm_importance_sampling_correction": True,
            "max_completion_length": MAX_TOKENS,
            "current_gradient_accumulation_steps": 1,
            "accelerator": SimpleNamespace(
                num_processes=1, is_main_process=False, gather=lambda x: x, reduce=lambda x, reduction: x
            ),
            "_metrics": defaultdict(lambda: defaultdict(list)),
            "model": SimpleNamespace(training=False),  # in training mode it would divide by the accumulation steps
            "state": SimpleNamespace(global_step=0),
        }  # fmt: skip


def config_of(name: str, **settings: Any) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate({"name": name, **settings})


OBJECTIVES = {
    "grpo": (config_of("grpo"), {"loss_type": "grpo"}, "advantage"),
    "dr_grpo": (config_of("dr_grpo"), {"loss_type": "dr_grpo"}, "centered"),
    "dapo": (config_of("dapo"), {"loss_type": "dapo", "epsilon_high": 0.28}, "advantage"),
    # A mean over the tokens of the present batch, which is the whole batch here.
    "dapo as bnpo": (config_of("dapo"), {"loss_type": "bnpo", "epsilon_high": 0.28}, "advantage"),
    "hpo with alpha 1 as dapo": (config_of("hpo", alpha=1.0), {"loss_type": "dapo"}, "advantage"),
    "gspo": (
        config_of("gspo"),
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon_low": 3e-4,
            "epsilon_high": 4e-4,
        },
        "advantage",
    ),
    # By design: our clip_high is the distance from 1, for every objective; TRL's epsilon_high is here the cap itself.
    "cispo": (config_of("cispo", clip_high=4.0), {"loss_type": "cispo", "epsilon_high": 5.0}, "advantage"),
    "sapo": (config_of("sapo"), {"loss_type": "sapo"}, "advantage"),
    # TRL's bound applies to both signs, but the clip limits positive advantages before it does.
    "grpo_dual_clip": (config_of("grpo_dual_clip"), {"loss_type": "grpo", "delta": 3.0}, "advantage"),
    "hpo_dual_clip with alpha 1": (
        config_of("hpo_dual_clip", alpha=1.0),
        {"loss_type": "dapo", "delta": 3.0},
        "advantage",
    ),
}


@pytest.mark.parametrize("spread", [0.0, 5e-4, 0.4, 1.5])
@pytest.mark.parametrize("case", OBJECTIVES)
def test_objectives_are_trls(trainer_class: type, case: str, spread: float) -> None:
    config, settings, advantage = OBJECTIVES[case]
    for seed in range(8):
        batch = DrawnBatch.draw(seed, spread=spread)
        assert_same_loss(batch, config, Trl(trainer_class, settings, advantage), tolerance=1e-6)


@pytest.mark.parametrize("spread", [0.0, 5e-4, 0.1, 0.4, 1.5])
def test_rloo_is_trls(rloo_class: type, spread: float) -> None:
    """The loss alone: TRL computes the advantage elsewhere, and subtracts the divergence from the reward."""
    for seed in range(8):
        batch = DrawnBatch.draw(seed, spread=spread)
        theirs = Trl(rloo_class, {}, "over_others")
        assert_same_loss(batch, config_of("rloo"), theirs, tolerance=1e-6)


@pytest.mark.parametrize("case", OBJECTIVES)
@given(seed=SEEDS)
def test_their_divergence_is_our_k3(trainer_class: type, case: str, seed: int) -> None:
    """TRL has no other estimator."""
    config, settings, advantage = OBJECTIVES[case]
    theirs = Trl(trainer_class, settings | {"beta": 0.2}, advantage)
    config = config.model_copy(update={"kl_coefficient": 0.2})
    assert_same_loss(DrawnBatch.draw(seed), config, theirs, tolerance=1e-6)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("case", OBJECTIVES)
def test_importance_weights_are_their_truncated_ones(trainer_class: type, case: str, level: str) -> None:
    """`token_truncate` and `sequence_truncate`. TRL also has modes that mask; its default is one of them."""
    config, settings, advantage = OBJECTIVES[case]

    def ratio(r: Drawn) -> Tensor:
        difference = r.old - r.sampler
        log_ratio = difference if level == "token" else difference.sum().reshape(1)
        return torch.exp(log_ratio).clamp(max=1.5)

    config = config.model_copy(update={"importance_cap": 1.5, "importance_level": level})
    for seed in range(8):
        theirs = Trl(trainer_class, settings, advantage, importance_sampling=ratio)
        assert_same_loss(DrawnBatch.draw(seed), config, theirs, tolerance=1e-6)


@pytest.mark.parametrize("case", OBJECTIVES)
def test_cut_off_responses_are_masked_as_theirs(trainer_class: type, case: str) -> None:
    """Masked responses count in the group's statistics and among the responses, but not in the sums of tokens."""
    config, settings, advantage = OBJECTIVES[case]
    config = config.model_copy(update={"mask_truncated": True})
    for seed in range(8):
        batch = DrawnBatch.draw(seed)
        theirs = Trl(trainer_class, settings, advantage, keep=lambda r: len(r) % 3 != 0)
        assert_same_loss(batch.truncated(lambda tokens: tokens % 3 == 0), config, theirs, tolerance=1e-6)


def test_the_entropy_bonus_is_theirs_where_tokens_are_averaged(trainer_class: type) -> None:
    """By design, our entropy has the scale of the surrogate; TRL's is always a mean over tokens."""
    batch = DrawnBatch.draw(0)
    theirs = Trl(trainer_class, {"loss_type": "dapo", "epsilon_high": 0.28, "entropy_coef": 0.1})
    assert_same_loss(batch, config_of("dapo", entropy_coefficient=0.1), theirs, tolerance=1e-6)
    theirs = Trl(trainer_class, {"loss_type": "grpo", "entropy_coef": 0.1})
    ours = batch.loss(config_of("grpo", entropy_coefficient=0.1)).loss
    assert abs(ours.item() - theirs(batch.responses()).item()) > 1e-3
