"""The attention with which a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from learner.engine.model_loading import load_model
from tests.builders import tiny_model


@pytest.mark.parametrize(("cap", "attention"), [(0.5, "eager"), (None, "sdpa")])
def test_capped_scores_are_capped(tmp_path: Path, cap: float | None, attention: str) -> None:
    """The engines cap them, and transformers' SDPA does not."""
    written = tiny_model("gemma2", tied=True, head_dim=8, attn_logit_softcapping=cap)
    written.save_pretrained(tmp_path)
    written.set_attn_implementation("eager")
    model = load_model(str(tmp_path), torch.float64, torch.device("cpu")).eval()
    assert model.config._attn_implementation == attention
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, written(ids).logits, atol=1e-4, rtol=0)
        written.set_attn_implementation("sdpa")
        differs = not torch.allclose(model(ids).logits, written(ids).logits, atol=1e-4, rtol=0)
    assert differs == (cap is not None)
