"""Renders and tokenizes a prompt, once. From here on only token ids travel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    text: str
    token_ids: tuple[int, ...]


class NoEndTokenError(ValueError):
    """A model with this tokenizer cannot come to an end."""


class PromptEncoder:
    """The tokenizer and chat template of the model in `directory`.

    Raises:
        NoEndTokenError: the tokenizer has no end-of-sequence token.
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

    def encode(self, question: str | list[dict[str, str]]) -> EncodedPrompt:
        """Plain text gets the special tokens the tokenizer adds by itself; chat messages get exactly their template's.

        Raises:
            ValueError: chat messages, and the model has no chat template.
        """
        if isinstance(question, str):
            return EncodedPrompt(question, tuple(self._tokenizer(question).input_ids))
        if self._tokenizer.chat_template is None:
            raise ValueError(
                f"the model in {self._directory} has no chat template, but the task asks in chat messages; "
                "use an instruct model, or a task style that is plain text"
            )
        text = self._tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        return EncodedPrompt(text, tuple(self._tokenizer(text, add_special_tokens=False).input_ids))
