"""Decodes sampled tokens, whatever the model sampled."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from cluster.core.text import utf8_text

logger = logging.getLogger(__name__)


def decoded(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Return the text of sampled tokens as valid UTF-8, without special tokens, whatever the model sampled.

    Some vocabularies have ids that their tokenizer does not know, or refuses. Then each such token is one U+FFFD.
    """
    try:
        return utf8_text(tokenizer.decode(token_ids, skip_special_tokens=True))
    except Exception as error:  # TypeError, KeyError, OverflowError, …: each tokenizer has its own
        logger.warning("the tokenizer cannot decode a response as a whole: %r", error)
    return "".join(_decoded_token(tokenizer, token_id) for token_id in token_ids)


def _decoded_token(tokenizer: Any, token_id: int) -> str:
    try:
        return utf8_text(tokenizer.decode([token_id], skip_special_tokens=True))
    except Exception:
        return "\N{REPLACEMENT CHARACTER}"
