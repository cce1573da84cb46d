"""Conversations as prompts: the check of their messages when data are read, and the texts that options add to them."""

from __future__ import annotations

from typing import Any

from reward.dataset.values import SHOWN_FIELDS, is_missing, is_text
from reward.task import ChatMessages

ROLES = ("system", "developer", "user", "assistant", "tool")
"""The roles of a message. A chat template ignores a role that it does not know, and its message with it."""

_FOREIGN_ROLES = {
    "human": "user",
    "customer": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}
"""Names of roles in ShareGPT and other formats, with the names that chat templates know."""


def conversation_mistake(prompt: Any) -> str | None:
    """Return the first mistake in a prompt that is not text, or None if it is a conversation."""
    if not isinstance(prompt, list) or not prompt:
        return "the prompt must be text, or chat messages that each have a role and a content"
    for number, message in enumerate(prompt, start=1):
        if mistake := _message_mistake(message):
            return f"message {number} of the prompt {mistake}"
    if not all(is_text(content_of(message)) for message in prompt):
        return "the prompt contains half of a surrogate pair"
    return "the last message is empty" if is_missing(content_of(prompt[-1])) else None


def ends_with_assistant(prompt: str | ChatMessages) -> bool:
    """Return True if the model is to continue the assistant's message at the end of the prompt."""
    return not isinstance(prompt, str) and prompt[-1]["role"] == "assistant"


def content_of(message: dict[str, Any]) -> str:
    """Return the text of a message. It is empty in a message that only calls tools."""
    return message.get("content") or ""


def with_options(prompt: ChatMessages, system: str | None, instruction: str | None) -> ChatMessages:
    """Return a conversation that begins with the system message. The instruction is appended to the last message of the
    user: a message of the assistant at the end, and the result of a tool, stay as they are."""
    messages = [{"role": "system", "content": system}] if system else []
    messages += prompt
    if instruction:
        last = max(index for index, message in enumerate(messages) if message["role"] == "user")
        content = f"{content_of(messages[last])}\n\n{instruction}"
        messages[last] = {**messages[last], "content": content}
    return messages


def _message_mistake(message: Any) -> str | None:
    """Return the mistake in a message, as the end of a sentence that begins with its number, or None."""
    if not isinstance(message, dict):
        return "is not an object with a role and a content"
    role = message.get("role")
    if role is None and "from" in message:
        name = _known_role(message["from"]) or "user"
        return f"has 'from' and 'value' (ShareGPT); write {{'role': '{name}', 'content': …}}"
    if role is None:
        fields = ", ".join(map(str, list(message)[:SHOWN_FIELDS])) or "none"
        return f"has no role (fields: {fields})"
    if role not in ROLES:
        known = _known_role(role)
        advice = f"write {known!r}" if known else f"write one of {', '.join(ROLES)}"
        return f"has the role {role!r:.40}; {advice}"
    content = message.get("content")
    if isinstance(content, str):
        return None
    if content is not None:
        return f"has a content that is no text but {_kind(content)}; join the texts of its parts"
    return None if role == "assistant" and message.get("tool_calls") else "has no content"


def _known_role(role: Any) -> str | None:
    """Return the role that another format's `role` stands for, or None."""
    name = str(role).strip().lower()
    return name if name in ROLES else _FOREIGN_ROLES.get(name)


def _kind(value: Any) -> str:
    return {list: "a list", dict: "an object", bool: "a bool"}.get(type(value), "a number")
