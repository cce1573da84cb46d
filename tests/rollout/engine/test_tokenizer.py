"""The requirements on tokenizers."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.configuration.task_checks import check_task
from cluster.core.config import RunConfig
from cluster.training.prompts import UnusablePromptError, load_dataset
from learner.model.supervised import character_tokenizer
from reward.tasks.countdown.starter import ANSWER_TAGS, COMPACT_CHARACTERS
from rollout.engine.tokenizer import NoEndTokenError, PromptEncoder


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
