"""The gap that TF32 causes in attention, from which its limit was chosen. TF32 is simulated on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softmax
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.sdpa_attention import repeat_kv

from cluster.configuration.loading import load_config
from cluster.core.logprob_gap import LARGEST_TO_MEAN_GAP, TF32_ATTENTION_GAP_LIMIT
from cluster.models.source import prepare_model
from tests import PROJECT

TEXT = "Use the numbers 3, 8, 17 and 42 to reach 94. First try 42 + 17 = 59, then 59 + 8 * 3 = 83, which is too small. "


def in_tf32(factor: Tensor) -> Tensor:
    """Cut a float32 tensor to the 10 bits of mantissa that a TF32 product keeps of it."""
    return (factor.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


def attention_in_tf32(
    module: torch.nn.Module,
    query_SHLE: Tensor,
    key_SJKE: Tensor,
    value_SJKE: Tensor,
    mask: Any,
    **options: Any,
) -> tuple[Tensor, None]:
    groups = query_SHLE.shape[1] // key_SJKE.shape[1]
    key_SHKE, value_SHKE = repeat_kv(key_SJKE, groups), repeat_kv(value_SJKE, groups)
    scores_SHLK = in_tf32(query_SHLE) @ in_tf32(key_SHKE).mT * query_SHLE.shape[-1] ** -0.5
    later = torch.ones(scores_SHLK.shape[-2:], dtype=torch.bool).triu(1)
    weights_SHLK = softmax(scores_SHLK.masked_fill(later, -torch.inf), -1)
    return (in_tf32(weights_SHLK) @ in_tf32(value_SHKE)).transpose(1, 2).contiguous(), None


@pytest.mark.slow
def test_the_limit_allows_for_attention_in_tf32(tmp_path: Path) -> None:
    """With SmolLM2-135M, the mean gap and the largest one are below half of their limits, and above those of float32
    without TF32. This does not show what the Triton kernel computes."""
    config = load_config(
        PROJECT / "configs" / "countdown_smollm2.yaml", [f"model.cache_directory={tmp_path}"]
    ).config
    directory = prepare_model(config, lambda _: None)
    ids = AutoTokenizer.from_pretrained(directory)(TEXT * 8, return_tensors="pt").input_ids
    AttentionInterface.register("tf32", attention_in_tf32)
    logprobs = []
    for attention in ("sdpa", "tf32"):
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation=attention
        )
        with torch.no_grad():
            logits_LV = model(ids).logits[0, :-1]
        logprobs.append(logits_LV.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0])
    gaps = (logprobs[0] - logprobs[1]).abs()
    assert 1e-5 < gaps.mean() < TF32_ATTENTION_GAP_LIMIT / 2
    assert gaps.max() < LARGEST_TO_MEAN_GAP * TF32_ATTENTION_GAP_LIMIT / 2
