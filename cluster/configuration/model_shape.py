"""The shape of a language model, read from its config.json: the sizes from which memory is computed. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.core.config import RunConfig
from cluster.core.reading import read_object
from cluster.models.published import PUBLISHED
from cluster.models.source import described_directory
from cluster.models.starter import find_starter
from learner.model.model_files import checkpoint_shapes

_NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_WITH_BIAS = ("qwen2",)
"""Model types whose projections to queries, keys and values have a bias that config.json does not mention."""
_WITH_QK_NORM = ("qwen3", "gemma3")
"""Model types that normalize queries and keys."""
_FOUR_NORMS = ("gemma2", "gemma3")
"""Model types with four normalizations per layer in place of two."""


class UnknownShapeError(ValueError):
    """The shape of a model cannot be determined. The message gives the reason in one line."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder with gated feed-forward layers, such as Llama, Qwen, Mistral and Gemma."""

    hidden: int
    """The width of the hidden states, D."""
    intermediate: int
    """The width of the feed-forward layers, I."""
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    tied: bool
    """True if the output layer is the embedding."""
    bias: bool = False
    """True if queries, keys and values have a bias."""
    qk_norm: bool = False
    """True if queries and keys are normalized."""
    norms: int = 2
    """The number of normalizations per layer, without those of queries and keys."""
    stored: int | None = None
    """The number of parameters in the model's files; None if they are not on this machine."""

    @property
    def query_width(self) -> int:
        """The width of all queries."""
        return self.heads * self.head_width

    @property
    def key_width(self) -> int:
        """The width of all keys."""
        return self.kv_heads * self.head_width

    @property
    def parameters(self) -> int:
        """The number of parameters, tied ones once."""
        if self.stored is not None:
            return self.stored
        return self.layers * self.layer_parameters + self.hidden + self.head * (1 if self.tied else 2)

    @property
    def layer_parameters(self) -> int:
        """The number of parameters of one layer."""
        attention = 2 * self.hidden * (self.query_width + self.key_width)
        if self.bias:
            attention += self.query_width + 2 * self.key_width
        if self.qk_norm:
            attention += 2 * self.head_width
        return attention + 3 * self.hidden * self.intermediate + self.norms * self.hidden

    @property
    def head(self) -> int:
        """The number of parameters of the output layer, and of the embedding."""
        return self.vocabulary * self.hidden

    def adapter_parameters(self, rank: int) -> int:
        """Return the number of parameters of adapters of this rank on every linear layer but the output layer."""
        d, i, q, k = self.hidden, self.intermediate, self.query_width, self.key_width
        return self.layers * rank * (2 * (d + q) + 2 * (d + k) + 3 * (d + i))

    @classmethod
    def from_config(cls, known: Mapping[str, Any], stored: int | None = None) -> ModelShape:
        """Return the shape that a config.json describes.

        Raises:
            UnknownShapeError: if it describes another kind of model.
        """
        known = known.get("text_config") or known
        if any(known.get(name) for name in _EXPERTS):
            raise UnknownShapeError("it is a mixture of experts")
        if known.get("attn_logit_softcapping"):
            raise UnknownShapeError("it caps the scores of its attention, which then stay in memory")
        missing = [name for name in _NEEDED if not isinstance(known.get(name), int)]
        if missing:
            raise UnknownShapeError(f"its config.json has no {', '.join(missing)}")
        heads = known["num_attention_heads"]
        kind = str(known.get("model_type", ""))
        return cls(
            hidden=known["hidden_size"],
            intermediate=known["intermediate_size"],
            layers=known["num_hidden_layers"],
            heads=heads,
            kv_heads=known.get("num_key_value_heads") or heads,
            head_width=known.get("head_dim") or known["hidden_size"] // heads,
            vocabulary=known["vocab_size"],
            tied=bool(known.get("tie_word_embeddings", kind.startswith("gemma"))),
            bias=bool(known.get("attention_bias")) or kind in _WITH_BIAS,
            qk_norm=kind.startswith(_WITH_QK_NORM),
            norms=4 if kind.startswith(_FOUR_NORMS) else 2,
            stored=stored,
        )


def find_shape(config: RunConfig) -> ModelShape:
    """Return the shape of the run's model from files on this machine, or as it was published. Nothing is downloaded or
    built.

    Raises:
        UnknownShapeError: if it cannot be determined.
    """
    if config.model.source == "starter" and find_starter(config.task.name) is None:
        raise UnknownShapeError("its task has no starter model")
    try:
        directory = described_directory(config)
    except ValueError as error:  # check_model reports it too
        raise UnknownShapeError("it does not exist") from error
    if directory is None:
        if config.model.source == "starter":
            raise UnknownShapeError("the starter model is not built yet")
        if (published := PUBLISHED.get(config.model.source)) is not None:
            return ModelShape.from_config(published)
        raise UnknownShapeError(
            f"its config.json is not on this machine (for one of the hub: hf download {config.model.source} "
            "config.json)"
        )
    try:
        known = read_object(directory / "config.json")
        stored = sum(math.prod(shape) for shape in checkpoint_shapes(directory).values())
    except (OSError, ValueError) as error:
        raise UnknownShapeError(f"its files cannot be read ({error})") from error
    return ModelShape.from_config(known, stored or None)
