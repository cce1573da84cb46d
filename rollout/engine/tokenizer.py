"""Renders and tokenizes prompts. Each prompt is tokenized once; engines and learner receive token ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A rendered prompt and its tokens."""

    text: str
    token_ids: tuple[int, ...]


class NoEndTokenError(ValueError):
    """The tokenizer has no end-of-sequence token, so no response could end."""


class PromptEncoder:
    """Encodes prompts with the tokenizer and the chat template of the model in `directory`.

    Raises:
        NoEndTokenError: if the tokenizer has no end-of-sequence token.
    """

    def __init__(self, directory: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        self._directory = directory
        if self._tokenizer.eos_token_id is None:
            raise NoEndTokenError(
                f"the tokenizer in {directory} has no end-of-sequence token, so no response would ever end; set "
                "eos_token in its tokenizer_config.json"
            )

    def encode(self, prompt: str | list[dict[str, str]]) -> EncodedPrompt:
        """Return the text and tokens of a prompt, which is plain text or a list of chat messages.

        Plain text gets the special tokens that the tokenizer adds by default. Chat messages get exactly the special
        tokens of their template.

        Raises:
            ValueError: if the prompt is a list of chat messages and the model has no chat template.
        """
        if isinstance(prompt, str):
            return EncodedPrompt(prompt, tuple(self._tokenizer(prompt).input_ids))
        if self._tokenizer.chat_template is None:
            raise ValueError(
                f"the model in {self._directory} has no chat template, but the task's prompts are chat messages; "
                "use an instruct model, or a style of the task with plain text"
            )
        text = self._tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        return EncodedPrompt(text, tuple(self._tokenizer(text, add_special_tokens=False).input_ids))
