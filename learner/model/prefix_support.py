"""Recognize models that cannot compute the responses of a group together, by their configuration. Torch-free.

Models that this check does not know are tested by the learner when it starts (learner/model/policy_setup.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_RECURRENT_KEYS = ("ssm_cfg", "mamba_d_state", "mamba_ssm_dtype", "state_size", "rescale_every")
_LAYER_KINDS = ("layer_types", "layers_block_type", "block_types", "attention_layers")
_FULL = {"full_attention", "attention", "global"}


def prefix_obstacle(known: Mapping[str, Any], max_context_tokens: int | None) -> str | None:
    """Return the reason why responses cannot share their prompt's forward pass in this model, or None if no reason is
    known.

    Args:
        known: the model's config.json.
        max_context_tokens: the run's setting, or None if it is not known. An attention window of at least this width
            has no effect.
    """
    known = known.get("text_config") or known
    kind = known.get("model_type", "this model")
    if known.get("is_encoder_decoder"):
        return f"{kind} has an encoder"
    if known.get("alibi") or kind in ("bloom", "mpt"):
        return f"{kind} encodes positions as distances between columns (ALiBi)"

    if known.get("attn_logit_softcapping"):
        return f"{kind} caps the scores of its attention (attn_logit_softcapping)"

    kinds = {str(layer) for key in _LAYER_KINDS for layer in known.get(key) or ()}
    if other := sorted(kinds - _FULL - {"sliding_attention"}):
        return f"{kind} has layers of other kinds than full attention ({', '.join(other)})"
    if any(known.get(key) is not None for key in _RECURRENT_KEYS):
        return f"{kind} has recurrent layers"
    if known.get("attention_chunk_size"):
        return f"{kind} attends in chunks of {known['attention_chunk_size']} tokens"

    window = known.get("sliding_window")
    slides = "sliding_attention" in kinds or (not kinds and known.get("use_sliding_window") is not False)
    if slides and isinstance(window, int) and (max_context_tokens is None or window < max_context_tokens):
        return (
            f"{kind} attends to the last {window} tokens only (sliding_window), and sequences may be longer"
        )
    return None
