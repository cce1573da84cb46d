"""A starter model is an ordinary Hugging Face directory, is reproducible by its seed, and learns its answers."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from learner.model.supervised import character_tokenizer, train_starter

CHARACTERS = "0123456789+= \n"
SMALL = {
    "characters": CHARACTERS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "layers": 1,
    "heads": 1,
    "max_tokens": 32,
    "batch_size": 8,
}
SUMS = [(f"{a}+{b}\n", f"<answer>{a + b}</answer>") for a in range(3) for b in range(3)]


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("starter")
    train_starter(SUMS, directory, steps=250, learning_rate=1e-2, **SMALL)
    return directory


def test_it_loads_as_any_other_model(starter: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(starter)
    tokenizer = AutoTokenizer.from_pretrained(starter)
    assert model.dtype == torch.float32
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.max_position_embeddings == 32
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 3


def test_its_output_layer_is_not_tied(starter: Path) -> None:
    weights = load_file(starter / "model.safetensors")
    assert not torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])


def test_it_has_learned_to_answer_and_to_stop(starter: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(starter)
    tokenizer = AutoTokenizer.from_pretrained(starter)
    for prompt, response in SUMS:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        output = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0]
        assert output[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(output, skip_special_tokens=True) == prompt + response


def test_a_seed_decides_the_weights_and_the_global_seed_is_untouched(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    weights = []
    for run, seed in enumerate((1, 1, 2)):
        train_starter(SUMS, tmp_path / str(run), steps=3, seed=seed, **SMALL)
        weights.append(load_file(tmp_path / str(run) / "model.safetensors"))
    first, again, other = weights
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    assert torch.equal(torch.rand(3), expected), "torch's global random state is the caller's"


def test_only_responses_bear_the_loss(tmp_path: Path) -> None:
    """Prompts are random and the response is fixed, so the loss reaches 0 only if prompts have no loss."""
    examples = [(f"{n * 7919 % 1000}=", "1") for n in range(200)]
    losses: list[float] = []
    train_starter(
        examples,
        tmp_path,
        steps=120,
        learning_rate=1e-2,
        on_step=lambda _, loss: losses.append(loss),
        **SMALL,
    )
    assert len(losses) == 120
    assert losses[-1] < 0.05 < losses[0]


@given(st.text(alphabet=CHARACTERS, max_size=20), st.text(alphabet=CHARACTERS, max_size=20))
def test_decoding_restores_the_text(before: str, answer: str) -> None:
    tokenizer = character_tokenizer(CHARACTERS, ["<answer>", "</answer>"], 64)
    text = f"{before}<answer>{answer}</answer>"
    tokens = tokenizer.encode(text)
    assert len(tokens) == len(before) + len(answer) + 2
    assert tokenizer.decode(tokens) == tokenizer.decode(tokens, skip_special_tokens=True) == text


@pytest.mark.parametrize(
    ("examples", "arguments", "message"),
    [
        (SUMS, {"heads": 4}, "hidden_size / heads"),
        ([], {}, "needs examples"),
        ([("1+1", "x")], {}, "lacks a character of '1\\+1x'"),
        ([("1" * 20, "1" * 12)], {}, "33 tokens, more than max_tokens = 32"),
    ],
)
def test_invalid_training_is_refused(
    tmp_path: Path, examples: list[tuple[str, str]], arguments: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train_starter(examples, tmp_path / "none", steps=1, **(SMALL | arguments))
    assert not (tmp_path / "none").exists()
