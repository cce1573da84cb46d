"""The requirements on tokenizers, and the refusal of prompts that a model cannot read."""

from __future__ import annotations

import datetime
import json
import string
from pathlib import Path
from typing import Any

import pytest

from cluster.configuration.task_checks import check_task
from cluster.core.config import RunConfig
from cluster.training.prompts import UnusablePromptError, load_dataset
from learner.model.supervised import character_tokenizer
from reward.tasks.countdown.starter import ANSWER_TAGS, COMPACT_CHARACTERS
from rollout.engine.chat_template import PromptError
from rollout.engine.tokenizer import NoEndTokenError, PromptEncoder
from tests.rollout.engine.chat_templates import FAMILIES, changed_content


def save_tokenizer(directory: Path, **special: str | None) -> Path:
    tokenizer = character_tokenizer(COMPACT_CHARACTERS, ANSWER_TAGS, 64)
    for name, token in special.items():
        setattr(tokenizer, name, token)
    tokenizer.save_pretrained(directory)
    (directory / "config.json").write_text('{"model_type": "llama"}')
    return directory


def test_a_tokenizer_without_an_end_of_sequence_token_is_refused(tmp_path: Path) -> None:
    model = save_tokenizer(tmp_path / "model", eos_token=None)
    with pytest.raises(NoEndTokenError, match=r"no end-of-sequence token.*set eos_token"):
        PromptEncoder(model)
    config = RunConfig.model_validate({"model": {"source": str(model)}})
    (problem,) = check_task(config)
    assert "no end-of-sequence token" in problem.what
    with pytest.raises(UnusablePromptError, match="no end-of-sequence token"):
        load_dataset(config, model)


def test_the_padding_token_may_be_the_end_token_or_missing(tmp_path: Path) -> None:
    eos = character_tokenizer(COMPACT_CHARACTERS, ANSWER_TAGS, 64).eos_token
    expected = PromptEncoder(save_tokenizer(tmp_path / "as-it-is")).encode("1+2").token_ids
    for number, pad in enumerate([eos, None]):
        model = save_tokenizer(tmp_path / str(number), pad_token=pad)
        assert PromptEncoder(model).encode("1+2").token_ids == expected


def chat_model(directory: Path, template: str | None) -> Path:
    """Save the files of a model with printable characters as its vocabulary and a chat template."""
    characters = "".join(sorted(set(string.printable) - set("\r\x0b\x0c")))
    tokenizer = character_tokenizer(characters, (), 4096)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    (directory / "config.json").write_text('{"model_type": "llama"}')
    return directory


def chat_run(directory: Path, template: str | None, prompts: list[Any], **options: Any) -> RunConfig:
    """Return a run of a task with these prompts and a model with this chat template."""
    data = directory / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    (directory / "scoring.py").write_text("def score(problem, response): return 1.0\n")
    options = {"data": str(data), "function": "scoring:score", "eval_fraction": 0.4, **options}
    model = chat_model(directory / "model", template)
    return RunConfig.model_validate(
        {"model": {"source": str(model)}, "task": {"name": "python", "options": options}}
    )


QUESTIONS = [f"What is {i} + 1?" for i in range(40)]


@pytest.mark.parametrize(
    ("template", "prompts", "options", "words"),
    [
        (
            FAMILIES["gemma"].template,
            QUESTIONS,
            {"system": "Be brief."},
            "System role not supported (and 39 more",
        ),
        ("{% for m in messages %}{{ m.content }", QUESTIONS, {}, "TemplateSyntaxError"),
        (
            FAMILIES["phi"].template.replace("'system'", "'sys'"),
            QUESTIONS,
            {"system": "Be brief."},
            "leaves out the system message (message 1 of 2)",
        ),
        (
            changed_content("m.content.split('</think>')[-1]") + FAMILIES["phi"].template,
            [*QUESTIONS, "Why does this end with </think>"],
            {},
            "rows.jsonl:41 ('Why does this end with </think>'): the chat template of",
        ),
        ("hello", QUESTIONS, {}, "leaves out the user message (message 1 of 1)"),
        ("", QUESTIONS, {}, "leaves out the user message"),
        (None, QUESTIONS, {}, "has no chat template"),
    ],
)
def test_check_and_run_refuse_the_same_prompts_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    template: str | None,
    prompts: list[Any],
    options: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    config = chat_run(tmp_path, template, prompts, **options)
    (problem,) = check_task(config)
    assert words in str(problem)
    assert "rows.jsonl:" in str(problem)
    assert "\n" not in str(problem)
    with pytest.raises(UnusablePromptError, match=r"^rows.jsonl:\d+ \('W") as refusal:
        load_dataset(config, Path(config.model.source))
    assert words.partition(" (and")[0] in str(refusal.value)


def test_sound_prompts_are_encoded_alike_from_text_messages_and_parquet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    config = chat_run(tmp_path, FAMILIES["chatml"].template, QUESTIONS, system="S", instruction="I")
    assert list(check_task(config)) == []
    expected = load_dataset(config, Path(config.model.source))
    assert expected.train[0].encoded.text.endswith("I<|im_end|>\n<|im_start|>assistant\n<think>\n")
    rows = [{"prompt": [{"role": "user", "content": question, "name": None}]} for question in QUESTIONS]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    options = config.task.options | {"data": str(tmp_path / "rows.parquet")}
    parquet = config.model_copy(update={"task": config.task.model_copy(update={"options": options})})
    found = load_dataset(parquet, Path(config.model.source))
    assert [p.encoded for p in found.train] == [p.encoded for p in expected.train]
    assert [p.encoded for p in found.eval] == [p.encoded for p in expected.eval]


DATED = FAMILIES["phi"].template + "{{ strftime_now('%d %B %Y') }}"


def test_prompts_do_not_depend_on_the_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is resumed after midnight has the same prompts."""
    encoder = PromptEncoder(chat_model(tmp_path / "model", DATED))
    messages = [{"role": "user", "content": "Q?"}]
    today = encoder.encode(messages)

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Tomorrow:
            return cls(2031, 2, 3, tzinfo=tz)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Tomorrow)
    assert encoder._tokenizer.apply_chat_template(messages, tokenize=False).endswith("03 February 2031")
    assert PromptEncoder(tmp_path / "model").encode(messages) == today
    assert today.text.endswith("26 July 2024")


def test_a_prompt_without_tokens_is_refused(tmp_path: Path) -> None:
    encoder = PromptEncoder(chat_model(tmp_path / "model", None))
    with pytest.raises(PromptError, match="makes no tokens"):
        encoder.encode("")
    with pytest.raises(
        PromptError, match=r"^prompt 1 \(''\): the tokenizer in .* \(and 1 more of 3 prompts\)$"
    ):
        encoder.encode_all(["", "a", ""], lambda index: f"prompt {index + 1}")


def test_half_of_a_surrogate_pair_is_refused(tmp_path: Path) -> None:
    encoder = PromptEncoder(chat_model(tmp_path / "model", FAMILIES["phi"].template))
    for prompt in ("a \ud83d", [{"role": "user", "content": "a \ud83d"}]):
        with pytest.raises(PromptError, match="cannot encode this prompt") as refusal:
            encoder.encode(prompt)  # type: ignore[arg-type]
        assert "\n" not in str(refusal.value)
        str(refusal.value).encode()


@pytest.mark.parametrize("content", ["{", "[]", '{"tokenizer_class": "NoSuchTokenizer"}'])
def test_a_damaged_tokenizer_is_one_line(tmp_path: Path, content: str) -> None:
    model = chat_model(tmp_path / "model", None)
    (model / "tokenizer.json").write_text(content)
    with pytest.raises(PromptError, match=r"the tokenizer in .* cannot be loaded \(") as refusal:
        PromptEncoder(model)
    assert "\n" not in str(refusal.value)
