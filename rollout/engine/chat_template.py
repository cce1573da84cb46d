"""Renders conversations with the chat template of a model, and refuses a template that loses a part of them.

A chat template is a program that came with the model. It may raise, run without end, or leave out what it does not
know: a role, a message, or the text before `</think>`. A run would then train on prompts without the question. So every
sequence of roles is rendered once with a mark in place of each content, and all marks must be found in the result. The
text that the template makes of a prompt must contain the contents of its messages.
"""

from __future__ import annotations

import json
import re
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from cluster.core.text import valid_text, without_nulls

TIME_LIMIT_S = 5.0
"""The computing time that a template has for one conversation. Templates take less than a hundredth of a second."""
MAX_ADDED_CHARACTERS = 1_000_000
"""The number of characters that a template may add to the contents of a conversation. Templates add a few thousand."""
SHOWN_CHARACTERS = 300
TODAY = datetime(2024, 7, 26)
"""The day that templates take for today. Many write it into the system message (Llama 3.2, gpt-oss, Mistral Small).

With the present day, the prompts of a run that is resumed, and of an evaluation that is repeated, would change
overnight. This is the day that the template of Llama 3.1 names if it is told no other."""

Message = dict[str, Any]
_REASONING_END = re.compile(r"</[\w:-]*(?:think|thought|reason)\w*>|\[/THINK\]", re.IGNORECASE)
_CONTROL_WORDS = re.compile(r"(?<!\S)/(?:no_)?think(?!\S)")
_SYSTEM_ROLES = ("system", "developer")


class PromptError(ValueError):
    """A prompt that the model's chat template or tokenizer cannot express. The message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class EndlessTemplateError(PromptError):
    """A chat template does not end within `TIME_LIMIT_S`."""


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: A tokenizer of transformers with a chat template.
        directory: The model's directory, for messages.
    """

    def __init__(self, tokenizer: Any, directory: Path) -> None:
        self._tokenizer = tokenizer
        self._name = f"the chat template of {directory}"
        self._faults: dict[tuple[Any, ...], str | None] = {}
        """The fault of the template with each form of a conversation, None if it has none."""

    def render(self, prompt: Sequence[Message]) -> str:
        """Return a conversation as text that ends where the model's response begins.

        Fields that are null are left out. A message of the assistant at the end is continued by the model.

        Raises:
            PromptError: if the template raises, does not end, or leaves out a part of the conversation.
        """
        messages = [{"content": "", **without_nulls(message)} for message in prompt]
        texts = [value for message in messages for value in (message.get("role"), message["content"])]
        if not messages or not all(isinstance(text, str) for text in texts):
            raise PromptError(
                "the prompt must be one message or more, each with a role and a content that are text"
            )
        text = self._rendered(messages)
        form = tuple(
            (message["role"], bool(message["content"].strip()), *sorted(map(str, message)))
            for message in messages
        )
        if form not in self._faults:
            self._faults[form] = self._fault(messages)
        if fault := self._faults[form]:
            raise PromptError(f"{self._name} {fault}")
        if changed := _changed_message(messages, text):
            raise PromptError(f"{self._name} {changed}")
        return text

    def _fault(self, messages: Sequence[Message]) -> str | None:
        """Return the fault of the template with conversations of this form, found by marks in place of the contents."""
        marked = [_marked(message, number) for number, message in enumerate(messages)]
        text = self._rendered(marked)
        position = 0
        for number, message in enumerate(messages):
            expected = _mark(number)
            called = message.get("tool_calls") and _call_mark(number) in json.dumps(
                marked[number], default=str
            )
            if called and _call_mark(number) not in text:
                return f"leaves out the tool calls of {_named(messages, number)}; choose a model that calls tools"
            if not message["content"].strip():
                continue
            if expected not in text and expected in text.lower():
                return f"changes the letters of {_named(messages, number)}"
            if expected not in text:
                return f"leaves out {_named(messages, number)}; {_advice(message['role'])}"
            if message["role"] in _SYSTEM_ROLES:
                continue  # some templates place it before the last message of the user
            if (position := text.find(expected, position)) < 0:
                return f"moves {_named(messages, number)} before an earlier message"
        return None

    def _rendered(self, messages: Sequence[Message]) -> str:
        """Return what the template makes of the messages. Whatever it raises is one PromptError."""
        continued = messages[-1]["role"] == "assistant"
        try:
            with _time_limit(TIME_LIMIT_S):
                text = self._tokenizer.apply_chat_template(
                    list(messages),
                    tokenize=False,
                    add_generation_prompt=not continued,
                    continue_final_message=continued,
                    strftime_now=TODAY.strftime,
                )
        except _TimeLimitError:
            raise EndlessTemplateError(
                f"{self._name} does not end: it computes for more than {TIME_LIMIT_S:g} s; correct it"
            ) from None
        except Exception as error:  # a template is a program, and raises anything
            if continued and type(error) is ValueError:  # of transformers, with the whole text
                raise PromptError(
                    f"{self._name} changes the message of the assistant at the end, so that the model cannot continue "
                    "it; end the prompt with a message of the user"
                ) from error
            raise PromptError(f"{self._name} fails{_line(error)}: {_words(error)}") from error
        if not isinstance(text, str):
            raise PromptError(f"{self._name} gives a value of the type {type(text).__name__}, not text")
        if len(text) > len(json.dumps(messages, default=str)) + MAX_ADDED_CHARACTERS:
            raise PromptError(f"{self._name} makes {len(text):,} characters of {len(messages)} messages")
        return text


def _marked(message: Message, number: int) -> Message:
    """Return the message with a mark in place of its content, and one in place of the names of the tools it calls."""
    marked = dict(message)
    if message["content"].strip():
        marked["content"] = _mark(number)
    if isinstance(message.get("tool_calls"), list):
        marked["tool_calls"] = [_marked_call(call, number) for call in message["tool_calls"]]
    return marked


def _marked_call(call: Any, number: int) -> Any:
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _marked_call(call["function"], number)}
    return {**call, "name": _call_mark(number)} if "name" in call else call


def _mark(number: int) -> str:
    """Return a word of letters for message `number`. No mark is part of another one."""
    letters = "".join(chr(ord("a") + number // 26**place % 26) for place in range(4))
    return f"markq{letters}qkram"


def _call_mark(number: int) -> str:
    return f"call{_mark(number)}"


def _named(messages: Sequence[Message], number: int) -> str:
    """Return a message in words, such as `the user message (message 3 of 5)`."""
    return f"the {messages[number]['role']} message (message {number + 1} of {len(messages)})"


def _advice(role: str) -> str:
    """Return the way out for a message that the template leaves out."""
    if role == "user":
        return "choose a model for text, or correct the template"
    if role == "developer":
        return "write the role system, or choose a model whose template has this role"
    return "write its text into a message of the user, or choose a model whose template has this role"


def _changed_message(messages: Sequence[Message], text: str) -> str | None:
    """Return the fault if the text that a template makes of messages does not contain the content of each of them.

    Blanks are not compared, because most templates strip contents. A template may write a content as JSON, which is
    usual for results of tools, and may act on the words `/think` and `/no_think` and leave them out. Templates of
    reasoning models leave out the reasoning of earlier messages of the assistant, which these models expect.
    """
    found = _without_blanks(text)
    for number, message in enumerate(messages):
        content = message["content"]
        if message["role"] == "assistant" and number < len(messages) - 1:
            content = _REASONING_END.split(content)[-1]
        forms = (
            lambda content: content,
            lambda content: json.dumps(content, ensure_ascii=False)[1:-1],
            lambda content: json.dumps(content)[1:-1],
            lambda content: _CONTROL_WORDS.sub("", content),
        )
        if any(_without_blanks(form(content)) in found for form in forms):
            continue
        end = _REASONING_END.search(content)
        cut = f", perhaps because it contains {end[0]}" if end else ""
        return f"cuts or changes the text of {_named(messages, number)}{cut}; change this prompt, or drop it"
    return None


def _without_blanks(text: str) -> str:
    return "".join(text.split())


class _TimeLimitError(BaseException):
    """Raised in the midst of a template. It is no Exception, which templates can suppress."""


@contextmanager
def _time_limit(limit_s: float) -> Iterator[None]:
    """Raise _TimeLimitError in the block when the process has computed for `limit_s`.

    Only the main thread has signals; in another one there is no limit. The signal of computing time leaves alarms,
    which others use, as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise _TimeLimitError

    before = signal.signal(signal.SIGVTALRM, interrupt)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before or signal.SIG_DFL)


def _line(error: BaseException) -> str:
    """Return the line of the template that raised, as ` at line 3`, if it is known."""
    line = getattr(error, "lineno", None)  # of a syntax error
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename in ("<template>", "<unknown>"):
            line = frame.lineno
    return f" at line {line}" if line else ""


def _words(error: BaseException) -> str:
    """Return the words of an exception of a template, with its type if it is not `raise_exception`."""
    words = str(error).strip()
    kind = type(error).__name__
    text = words if words and kind == "TemplateError" else f"{kind}: {words}" if words else kind
    return valid_text(" ".join(text.split()), SHOWN_CHARACTERS)
