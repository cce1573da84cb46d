"""Renders and tokenizes prompts. Each prompt is tokenized once; engines and learner receive token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout.engine.chat_template import ChatTemplate, EndlessTemplateError, PromptError

SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A rendered prompt and its tokens."""

    text: str
    token_ids: tuple[int, ...]


class NoEndTokenError(PromptError):
    """The tokenizer has no end-of-sequence token, so no response could end."""


class PromptEncoder:
    """Encodes prompts with the tokenizer and the chat template of the model in `directory`.

    Raises:
        NoEndTokenError: if the tokenizer has no end-of-sequence token.
        PromptError: if the tokenizer cannot be loaded.
    """

    def __init__(self, directory: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        except Exception as error:  # the types depend on the file that is missing or damaged
            raise PromptError(
                f"the tokenizer in {directory} cannot be loaded ({_first_line(error)})"
            ) from error
        self._directory = directory
        self._template = ChatTemplate(self._tokenizer, directory)
        if self._tokenizer.eos_token_id is None:
            raise NoEndTokenError(
                f"the tokenizer in {directory} has no end-of-sequence token, so no response would ever end; set "
                "eos_token in its tokenizer_config.json"
            )

    def encode(self, prompt: str | list[dict[str, Any]]) -> EncodedPrompt:
        """Return the text and tokens of a prompt, which is plain text or a list of chat messages.

        Plain text gets the special tokens that the tokenizer adds by default. Chat messages get exactly the special
        tokens of their template.

        Raises:
            PromptError: if the prompt is a list of chat messages and the model has no chat template, or one that fails
                or leaves out a part of them; if the prompt has no tokens.
        """
        if isinstance(prompt, str):
            return self._tokenized(prompt, add_special_tokens=True)
        if self._tokenizer.chat_template is None:
            raise PromptError(
                f"the model in {self._directory} has no chat template, but the task's prompts are chat messages; "
                "use an instruct model, or a style of the task with plain text"
            )
        return self._tokenized(self._template.render(prompt), add_special_tokens=False)

    def encode_all(
        self, prompts: Sequence[str | list[dict[str, Any]]], named: Callable[[int], str]
    ) -> list[EncodedPrompt]:
        """Return the text and tokens of all prompts of a data set.

        Args:
            named: Returns the location of a prompt in words, such as `data.jsonl:17`.

        Raises:
            PromptError: if some prompts cannot be encoded. The message names the first one and counts the others.
        """
        encoded, mistakes = [], []
        for index, prompt in enumerate(prompts):
            try:
                encoded.append(self.encode(prompt))
            except PromptError as error:
                mistakes.append(f"{named(index)} ({_excerpt(prompt)}): {error}")
                if isinstance(error, EndlessTemplateError):
                    break  # the others would take as long
        if mistakes:
            others = f" (and {len(mistakes) - 1} more of {len(prompts)} prompts)" if len(mistakes) > 1 else ""
            raise PromptError(mistakes[0] + others)
        return encoded

    def _tokenized(self, text: str, add_special_tokens: bool) -> EncodedPrompt:
        try:
            tokens = tuple(self._tokenizer(text, add_special_tokens=add_special_tokens).input_ids)
        except Exception as error:  # the types depend on the tokenizer
            raise PromptError(
                f"the tokenizer in {self._directory} cannot encode this prompt ({_first_line(error)})"
            ) from error
        if not tokens:
            raise PromptError(f"the tokenizer in {self._directory} makes no tokens of this prompt")
        return EncodedPrompt(text, tokens)


def _excerpt(prompt: str | Sequence[dict[str, Any]]) -> str:
    """Return the beginning of a prompt, of its last message if there are several, as one printable line."""
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content") or "") if prompt else ""
    return repr(text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
