"""Chat templates in the style of several model families, written for the tests, and faults to put into each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A chat template, and the messages that it supports."""

    template: str
    system: bool = True
    tool: bool = False
    system_with_prefill: bool = True
    cuts_reasoning: bool = False
    """True if it leaves out the reasoning of earlier messages of the assistant."""


CHATML = Family(
    """{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
    {%- set body = message.content %}
    {%- if message.role == 'assistant' and '</think>' in body and not loop.last %}
        {%- set body = body.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + body + '\\n</tool_response><|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + body }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>' + (call.function or call) | tojson + '</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}""",
    tool=True,
    cuts_reasoning=True,
)

LLAMA = Family(
    """{{- '<|begin_of_text|>' }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_text = messages[0]['content'] | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system_text = '' %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: 2023\\n\\n' + system_text + '<|eot_id|>' }}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + message.content | tojson + '<|eot_id|>' }}
    {%- elif message.tool_calls %}
        {%- if message.tool_calls | length != 1 %}{{ raise_exception('only single tool-calls') }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '"}<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}""",
    tool=True,
)

GEMMA = Family(
    """{{ '<bos>' }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- set role = 'model' if message.role == 'assistant' else message.role %}
    {{- '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}""",
    system=False,
)

GEMMA_3 = Family(
    """{%- set ns = namespace(first='') %}
{%- if messages[0].role == 'system' %}
    {%- set ns.first = messages[0].content + '\\n\\n' %}{% set messages = messages[1:] %}
{%- endif %}
{{- '<bos>' }}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\\n' }}
    {{- (ns.first if loop.first else '') + message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
)

MISTRAL = Family(
    """{%- if messages[0].role == 'system' %}{% set system_text, turns = messages[0].content, messages[1:] %}
{%- else %}{% set system_text, turns = '', messages %}{% endif %}
{{- '<s>' }}
{%- for message in turns %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After the optional system message, conversation roles must alternate') }}
    {%- endif %}
    {%- if message.role == 'user' %}
        {%- set head = system_text + '\\n\\n' if loop.last and system_text else '' %}
        {{- '[INST] ' + head + message.content + '[/INST]' }}
    {%- else %}{{ ' ' + message.content | trim + '</s>' }}{% endif %}
{%- endfor %}""",
    system_with_prefill=False,
)
"""The system text comes before the message of the user at the end, and is left out if the end is a prefill."""

DEEPSEEK = Family(
    """{%- set ns = namespace(system='') %}
{%- for message in messages if message.role == 'system' %}{% set ns.system = ns.system + message.content %}{% endfor %}
{{- '<bos>' + ns.system }}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{ '<|User|>' + message.content }}{% endif %}
    {%- if message.role == 'assistant' %}
        {%- set body = message.content %}
        {%- if '</think>' in body %}{% set body = body.split('</think>')[-1] %}{% endif %}
        {{- '<|Assistant|>' + body + '<eos>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}""",
    cuts_reasoning=True,
)

PHI = Family(
    """{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{ '<|system|>\\n' +
message['content'] + '<|end|>\\n' }}{% elif message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'] +
'<|end|>\\n' }}{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\\n' + message['content'] + '<|end|>\\n'
}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""
)

FAMILIES = {
    "chatml": CHATML,
    "llama": LLAMA,
    "gemma": GEMMA,
    "gemma-3": GEMMA_3,
    "mistral": MISTRAL,
    "deepseek": DEEPSEEK,
    "phi": PHI,
}

EACH_MESSAGE = (
    "{% set ns = namespace(kept=[]) %}{% for m in messages %}"
    "{% set ns.kept = ns.kept + [dict(m, content=CONTENT)] %}{% endfor %}{% set messages = ns.kept %}"
)
"""The beginning of a template that changes the content `m.content` of every message first."""


def without_role(role: str) -> str:
    """Return the beginning of a template that then does not know the messages of a role."""
    return f"{{% set messages = messages | rejectattr('role', 'equalto', '{role}') | list %}}"


def without_message(number: int) -> str:
    """Return the beginning of a template that then does not see one message."""
    return f"{{% set messages = messages[:{number}] + messages[{number + 1}:] %}}"


def changed_content(expression: str) -> str:
    """Return the beginning of a template that then sees the value of an expression of `m.content` as each content."""
    return EACH_MESSAGE.replace("CONTENT", expression)
