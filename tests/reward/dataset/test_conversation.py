"""Conversations with unknown roles or other fields are refused, and options never change a message of the assistant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward.dataset.conversation import ROLES, conversation_mistake, with_options
from reward.dataset.rows import DatasetOptions, load_rows, prompt_key, render

texts = st.text(min_size=1).filter(lambda text: any(c.isprintable() and not c.isspace() for c in text))
conversations = st.lists(
    st.builds(lambda role, text: {"role": role, "content": text}, st.sampled_from(ROLES), texts), min_size=1
)


@given(messages=conversations)
def test_known_roles_with_text_are_a_conversation(messages: list[dict[str, Any]]) -> None:
    assert conversation_mistake(messages) is None


@given(
    messages=conversations,
    role=st.one_of(st.text(), st.integers(), st.none(), st.just(["user"])).filter(
        lambda role: role not in ROLES
    ),
    data=st.data(),
)
def test_any_other_role_is_refused(messages: list[dict[str, Any]], role: Any, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(messages) - 1))
    messages[number] = {**messages[number], "role": role}
    mistake = conversation_mistake(messages)
    assert mistake is not None
    assert mistake.startswith(f"message {number + 1} of the prompt has ")
    assert "\n" not in mistake


@pytest.mark.parametrize(
    ("message", "mistake"),
    [
        ({"role": "human", "content": "a"}, "has the role 'human'; write 'user'"),
        ({"role": "gpt", "content": "a"}, "has the role 'gpt'; write 'assistant'"),
        ({"role": "User", "content": "a"}, "has the role 'User'; write 'user'"),
        ({"role": "function", "content": "a"}, "has the role 'function'; write 'tool'"),
        ({"role": "narrator", "content": "a"}, "write one of system, developer, user, assistant, tool"),
        ({"from": "human", "value": "a"}, "'value' (ShareGPT); write {'role': 'user', 'content': …}"),
        ({"from": "gpt", "value": "a", "role": None}, "write {'role': 'assistant', 'content': …}"),
        ({"content": "a"}, "has no role (fields: content)"),
        ({"role": "user"}, "has no content"),
        ({"role": "assistant", "content": None}, "has no content"),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            "a content that is no text but a list",
        ),
        ({"role": "user", "content": 3}, "a content that is no text but a number"),
        ("a", "is not an object with a role and a content"),
    ],
)
def test_the_line_has_the_row_and_the_name_to_write(tmp_path: Path, message: Any, mistake: str) -> None:
    sound = {"role": "user", "content": "Q?"}
    rows = [{"prompt": [sound]}, {"prompt": [message, sound]}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"^data.jsonl:2: message 1 of the prompt ") as refusal:
        load_rows(DatasetOptions(data=str(tmp_path / "data.jsonl")))
    assert mistake in str(refusal.value)


@given(messages=conversations, system=st.none() | texts, instruction=st.none() | texts)
def test_options_change_one_message_of_the_user_alone(
    messages: list[dict[str, Any]], system: str | None, instruction: str | None
) -> None:
    if not any(message["role"] == "user" for message in messages):
        messages.append({"role": "user", "content": "Q?"})
    found = with_options(messages, system, instruction)
    if system:
        assert found.pop(0) == {"role": "system", "content": system}
    changed = [number for number, message in enumerate(found) if message != messages[number]]
    assert len(found) == len(messages)
    if instruction is None:
        assert not changed
        return
    (number,) = changed
    assert found[number] == {"role": "user", "content": f"{messages[number]['content']}\n\n{instruction}"}
    assert all(message["role"] != "user" for message in found[number + 1 :])


def chat(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in pairs]


def test_an_instruction_follows_the_question_and_not_the_beginning_of_the_answer() -> None:
    row = {"prompt": chat(("user", "Q?"), ("assistant", "Let me think."))}
    assert render(row, DatasetOptions(instruction="I")) == chat(
        ("user", "Q?\n\nI"), ("assistant", "Let me think.")
    )


def test_an_instruction_needs_a_message_of_the_user(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": chat(("system", "Solve 1 + 1."))}))
    assert load_rows(DatasetOptions(data=str(data), eval_fraction=0.5)).locations
    with pytest.raises(ValueError, match=r"data.jsonl:1: the prompt has no message of the user, to which"):
        load_rows(DatasetOptions(data=str(data), instruction="I"))


def test_prompts_that_the_model_continues_are_noted(tmp_path: Path) -> None:
    """A data set of conversations that contain their answers is noticed."""
    rows = [{"prompt": chat(("user", f"{i}?"), ("assistant", "yes"))} for i in range(3)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [{"prompt": "Q?"}, *rows]))
    (note,) = load_rows(DatasetOptions(data=str(tmp_path / "data.jsonl"))).notes
    assert note.endswith(
        "3 of 4 prompts end with a message of the assistant, which the model continues, the first is data.jsonl:2"
    )


def test_calls_of_tools_distinguish_prompts() -> None:
    def called(name: str, **null: None) -> list[dict[str, Any]]:
        call = {"role": "assistant", "content": None, "tool_calls": [{"name": name, **null}]}
        return [*chat(("user", "Q?")), call, *chat(("tool", "3"))]

    assert conversation_mistake(called("f")) is None
    assert prompt_key(called("f")) != prompt_key(called("g"))
    assert prompt_key(called("f")) == prompt_key(called("f", arguments=None)), "as Parquet has it"
