"""A chat template gives every message of a conversation, or the conversation is refused in one line."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rollout.engine import chat_template
from rollout.engine.chat_template import ChatTemplate, EndlessTemplateError, PromptError
from tests.rollout.engine.chat_templates import (
    FAMILIES,
    Family,
    changed_content,
    without_message,
    without_role,
)

Conversation = list[dict[str, Any]]
PIECES = ["a b", "x = 3?", "\n\n", " ", '"q"', "{{ y }}", "<b>", "é", "1.5", "[INST]", "\\n", "&amp;"]
texts = st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join).filter(str.strip)
reasoned = st.tuples(st.sampled_from(["", "<think>\nhm</think>\n\n", "hm</think>"]), texts).map("".join)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from learner.model.supervised import character_tokenizer

    return character_tokenizer("".join(sorted(set(string.printable) - set("\r\x0b\x0c"))), (), 4096)


def template_of(tokenizer: Any, text: str) -> ChatTemplate:
    tokenizer.chat_template = text
    return ChatTemplate(tokenizer, Path("some/model"))


@st.composite
def conversations(draw: st.DrawFn, family: Family, contents: st.SearchStrategy[str] = texts) -> Conversation:
    """Return a conversation that the family supports: turns, with a system message, tools and a prefill or without."""
    found = [{"role": "system", "content": draw(texts)}] if family.system and draw(st.booleans()) else []
    for turn in range(draw(st.integers(1, 4))):
        if turn:
            found.append({"role": "assistant", "content": draw(contents)})
        if turn and family.tool and draw(st.booleans()):
            call = {"type": "function", "function": {"name": "look_up", "arguments": {"key": "v"}}}
            found.append({"role": "user", "content": draw(texts)})
            found.append({"role": "assistant", "content": "", "tool_calls": [call]})
            found.append({"role": "tool", "content": draw(texts)})
        else:
            found.append({"role": "user", "content": draw(texts)})
    if (family.system_with_prefill or found[0]["role"] != "system") and draw(st.booleans()):
        found.append({"role": "assistant", "content": draw(contents)})
    return found


def without_blanks(text: str) -> str:
    return "".join(text.split())


def shown(message: dict[str, Any], text: str) -> bool:
    """Tell whether the text has the content, also as JSON if it is the result of a tool."""
    content = message["content"]
    forms = (
        [content, json.dumps(content, ensure_ascii=False)[1:-1]] if message["role"] == "tool" else [content]
    )
    return any(without_blanks(form) in without_blanks(text) for form in forms)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_family_shows_all_messages(tokenizer: Any, name: str, data: st.DataObject) -> None:
    messages = data.draw(conversations(FAMILIES[name]))
    text = template_of(tokenizer, FAMILIES[name].template).render(messages)
    assert all(shown(message, text) for message in messages)
    if messages[-1]["role"] == "assistant":
        assert without_blanks(text).endswith(without_blanks(messages[-1]["content"])), (
            "nothing follows a prefill"
        )


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.cuts_reasoning])
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_only_the_reasoning_of_earlier_messages_may_be_left_out(
    tokenizer: Any, name: str, data: st.DataObject
) -> None:
    messages = data.draw(conversations(FAMILIES[name], reasoned))
    template = template_of(tokenizer, FAMILIES[name].template)
    if name == "deepseek" and "</think>" in messages[-1]["content"]:  # it cuts the message at the end, too
        with pytest.raises(PromptError, match="changes the message of the assistant at the end"):
            template.render(messages)
        return
    text = template.render(messages)
    for message in messages[:-1]:
        answer = (
            message["content"].rpartition("</think>")[2]
            if message["role"] == "assistant"
            else message["content"]
        )
        assert shown({**message, "content": answer}, text)
    assert shown(messages[-1], text)


REVERSED = changed_content("m.content | reverse")
FAULTS = st.one_of(
    st.sampled_from(
        [
            "hello{#",
            "{{ raise_exception('no') }}",
            "{{ nothing(1) }}",
            "{% for",
            "{% set messages = messages | reverse | list + [] %}{% set messages = messages[:-1] %}",
            changed_content("m.content | upper"),
            REVERSED,
            changed_content("m.content | replace('mark', '')"),
            changed_content("''"),
            "{% for i in range(10 ** 9) %}{% endfor %}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        ]
    ),
    st.integers(1, 13).map(lambda length: changed_content(f"m.content[:{length}]")),
)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_fault_in_any_template_is_one_line(tokenizer: Any, name: str, data: st.DataObject) -> None:
    messages = data.draw(conversations(FAMILIES[name]))
    texts_of = [number for number, message in enumerate(messages) if message["content"].strip()]
    fault = data.draw(
        st.one_of(
            FAULTS,
            st.sampled_from([messages[number]["role"] for number in texts_of]).map(without_role),
            st.sampled_from(texts_of).map(without_message),
        )
    )
    # A palindrome that is alone is what it was: then there is no fault.
    assume(fault != REVERSED or len(messages) > 1 or messages[0]["content"] != messages[0]["content"][::-1])
    end = "#}" if fault.endswith("{#") else ""
    with pytest.raises(PromptError, match="the chat template of some/model ") as refusal:
        template_of(tokenizer, fault + FAMILIES[name].template + end).render(messages)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 600


def user(content: str, **fields: Any) -> Conversation:
    return [{"role": "user", "content": content, **fields}]


SYSTEM = [{"role": "system", "content": "S"}, *user("Q?")]
CHATML = FAMILIES["chatml"].template


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (FAMILIES["gemma"].template, SYSTEM, "fails at line 2: System role not supported"),
        (
            "{% for m in messages %}\n{{ m.content }",
            user("Q"),
            "fails at line 2: TemplateSyntaxError: unexpected",
        ),
        ("\n{{ nothing() }}", user("Q"), "fails at line 2: UndefinedError: 'nothing' is undefined"),
        (
            without_role("system") + CHATML,
            SYSTEM,
            "leaves out the system message (message 1 of 2); write its text",
        ),
        (
            FAMILIES["phi"].template,
            [*user("Q"), {"role": "tool", "content": "3"}],
            "leaves out the tool message",
        ),
        (changed_content("m.content | upper") + CHATML, user("Q"), "changes the letters of the user message"),
        (
            "{% set messages = messages | reverse | list %}{% for m in messages %}{{ m.content }}{% endfor %}",
            [*user("a"), {"role": "assistant", "content": "b"}, *user("c")],
            "moves the assistant message (message 2 of 3) before an earlier message",
        ),
        (
            "{% for m in messages %}{{ m.content.split('</think>')[-1] | trim }}{% endfor %}",
            user("Why does it end with </think>"),
            "cuts or changes the text of the user message (message 1 of 1), perhaps because it contains </think>",
        ),
        (
            changed_content("m.content[:20]") + CHATML,
            user("long " * 9),
            "cuts or changes the text of the user",
        ),
        (
            changed_content("m.content | e") + CHATML,
            user("is 1 < 2?"),
            "cuts or changes the text of the user",
        ),
        ("{{ 'x' * 2000000 }}", user("Q"), "makes 2,000,000 characters of 1 messages"),
        (
            FAMILIES["phi"].template,
            [*user("Q"), {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}, *user("R")],
            "leaves out the tool calls of the assistant message (message 2 of 3)",
        ),
        (
            CHATML,
            [{"role": "user", "content": [{"type": "text", "text": "Q"}]}],
            "a role and a content that are text",
        ),
        (CHATML, [{"content": "Q"}], "a role and a content that are text"),
        (CHATML, [], "one message or more"),
        (
            FAMILIES["phi"].template,
            [{"role": "developer", "content": "S"}, *user("Q")],
            "leaves out the developer message (message 1 of 2); write the role system",
        ),
    ],
)
def test_the_line_says_what_is_lost(
    tokenizer: Any, template: str, messages: Conversation, message: str
) -> None:
    with pytest.raises(PromptError) as refusal:
        template_of(tokenizer, template).render(messages)
    assert message in str(refusal.value)


def test_fields_that_are_null_are_left_out(tokenizer: Any) -> None:
    """Parquet adds them, and a template that asks `is defined` would fail on them."""
    strict = "{% for m in messages %}{% if m.tool_calls is defined %}{{ m.tool_calls | length }}{% endif %}"
    strict += "{% if 'name' in m %}{{ 1 / 0 }}{% endif %}{{ m.content }}{% endfor %}"
    assert template_of(tokenizer, strict).render(user("Q", tool_calls=None, name=None)) == "Q"
    calls = [{"function": {"name": "f", "arguments": {"a": 1, "b": None}}}]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    text = template_of(tokenizer, CHATML).render([*user("Q"), message, {"role": "tool", "content": "3"}])
    assert '{"name": "f", "arguments": {"a": 1}}' in text


def test_control_words_may_be_left_out(tokenizer: Any) -> None:
    cut = changed_content("m.content | replace('/no_think', '') | replace('/think', '')") + CHATML
    messages = [{"role": "system", "content": "/no_think"}, *user("Q /think")]
    assert "Q" in template_of(tokenizer, cut).render(messages)
    with pytest.raises(PromptError, match="cuts or changes the text of the user message"):
        template_of(tokenizer, cut).render(user("see a/think"))


@pytest.mark.parametrize("body", ["", "x"])
def test_a_template_without_end_is_interrupted(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    monkeypatch.setattr(chat_template, "TIME_LIMIT_S", 0.1)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}" + body + "{% endfor %}{% endfor %}"
    with pytest.raises(EndlessTemplateError, match=r"does not end: it computes for more than 0\.1 s"):
        template_of(tokenizer, loops).render(user("Q"))
    assert template_of(tokenizer, CHATML).render(user("Q")), "the next template is not interrupted"


def test_a_template_may_fail_for_some_prompts_only(tokenizer: Any) -> None:
    """The marks have shown that the form is sound, and each prompt is still compared."""
    template = template_of(tokenizer, changed_content("m.content.split('|')[0]") + CHATML)
    assert "one" in template.render(user("one"))
    with pytest.raises(PromptError, match="cuts or changes"):
        template.render(user("one|two"))
    assert "three" in template.render(user("three"))
