"""Starter models: a Llama of about a million parameters, trained in a minute or two on a CPU.

They replace a pretrained model where none can be downloaded: in tests, and in a demonstration of the whole system that
takes minutes. `train_starter` writes an ordinary Hugging Face directory, which `AutoModelForCausalLM`, `AutoTokenizer`
and vLLM load.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
# The head sizes that both the CPU and the GPU attention of vLLM support.
HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)

_IGNORED = -100  # the label of a position without a loss


def train_starter(
    examples: Sequence[tuple[str, str]],
    directory: Path,
    *,
    characters: str,
    added_tokens: Sequence[str] = ("<answer>", "</answer>"),
    hidden_size: int = 128,
    intermediate_size: int = 512,
    layers: int = 4,
    heads: int = 4,
    max_tokens: int = 256,
    steps: int = 1500,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    warmup_steps: int = 50,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Train a character-level Llama on (prompt, response) pairs and save it with its tokenizer, in float32.

    An end-of-sequence token is appended to each response. The loss covers the response and this token, not the prompt.
    The same arguments on the same machine with the same number of threads give the same weights. The global random
    state of torch is left unchanged.

    Args:
        examples: pairs of texts, visited in shuffled epochs.
        directory: the output directory. It is created if missing; files of an earlier model are overwritten.
        characters: every character that a prompt or response may contain. Each is one token.
        added_tokens: strings that are one token each and are kept when decoding.
        hidden_size: width of the residual stream.
        intermediate_size: width inside the gated feed-forward layers.
        layers: the number of transformer blocks.
        heads: the number of attention heads; `hidden_size / heads` must be one of `HEAD_SIZES`.
        max_tokens: the largest length of prompt + response + 1 (`max_position_embeddings`).
        steps: the number of optimizer steps.
        batch_size: the number of examples per step.
        learning_rate: the peak, reached after `warmup_steps` and followed by a cosine decay to zero.
        warmup_steps: the number of steps of linear increase.
        seed: the seed of the initial weights and of the order of examples.
        on_step: called after each step with the number of finished steps and the step's loss (nats per token).

    Raises:
        ValueError: if vLLM does not support the head size, there are no examples, the vocabulary lacks a character,
            or an example is longer than `max_tokens`.
    """
    if hidden_size % heads or hidden_size // heads not in HEAD_SIZES:
        raise ValueError(f"hidden_size / heads must be one of {HEAD_SIZES}, got {hidden_size} / {heads}")
    tokenizer = character_tokenizer(characters, added_tokens, max_tokens)
    encoded = [_encode(tokenizer, prompt, response, max_tokens) for prompt, response in examples]
    if not encoded:
        raise ValueError("a starter model needs examples to train on")

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _new_model(tokenizer, hidden_size, intermediate_size, layers, heads, max_tokens)
        _train(model, _batches(encoded, batch_size, steps), steps, learning_rate, warmup_steps, on_step)

    _save(model, tokenizer, directory)


def character_tokenizer(
    characters: str, added_tokens: Sequence[str], max_tokens: int
) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per character and per added token.

    Decoding joins tokens without spaces, so it restores the text. Pad and end-of-sequence are different tokens. There
    is no beginning-of-sequence token. A character outside the vocabulary becomes `<unk>`.
    """
    vocabulary = [PAD, EOS, UNKNOWN, *added_tokens, *sorted(set(characters))]
    tokenizer = Tokenizer(models.WordLevel({text: i for i, text in enumerate(vocabulary)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    special = [AddedToken(text, special=True, normalized=False) for text in (PAD, EOS, UNKNOWN)]
    tokenizer.add_special_tokens(special)
    # Not special, because `skip_special_tokens=True` must not remove the answer's tags before the verifier reads it.
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added_tokens])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=max_tokens,
    )


def _encode(
    tokenizer: PreTrainedTokenizerFast, prompt: str, response: str, max_tokens: int
) -> tuple[list[int], list[int]]:
    """Return token ids and labels of one example, both of its length. Prompt positions have no loss."""
    prompt_ids, response_ids = tokenizer.encode(prompt), tokenizer.encode(response)
    if tokenizer.unk_token_id in prompt_ids + response_ids:
        raise ValueError(f"the vocabulary lacks a character of {prompt + response!r}")
    tokens = [*prompt_ids, *response_ids, tokenizer.eos_token_id]
    if len(tokens) > max_tokens:
        raise ValueError(f"an example has {len(tokens)} tokens, more than max_tokens = {max_tokens}")
    return tokens, [_IGNORED] * len(prompt_ids) + tokens[len(prompt_ids) :]


def _new_model(
    tokenizer: PreTrainedTokenizerFast,
    hidden_size: int,
    intermediate_size: int,
    layers: int,
    heads: int,
    max_tokens: int,
) -> LlamaForCausalLM:
    # Untied weights, because vLLM on CPU keeps a stale output layer when tied weights are reloaded.
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max_tokens,
        # Four times the default, with which such a narrow model learns faster.
        initializer_range=0.08,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return LlamaForCausalLM(config).float()


def _batches(
    encoded: Sequence[tuple[list[int], list[int]]], batch_size: int, steps: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield `steps` pairs of tokens and labels, each (batch, length), right-padded to the longest of the batch."""
    order: list[int] = []
    for _ in range(steps):
        while len(order) < batch_size:
            order += torch.randperm(len(encoded)).tolist()
        batch, order = [encoded[i] for i in order[:batch_size]], order[batch_size:]
        length = max(len(tokens) for tokens, _ in batch)
        # The value of a pad token has no effect: it comes after all positions with a loss.
        tokens = torch.tensor([tokens + [0] * (length - len(tokens)) for tokens, _ in batch])
        labels = torch.tensor([labels + [_IGNORED] * (length - len(labels)) for _, labels in batch])
        yield tokens, labels


def _train(
    model: LlamaForCausalLM,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    steps: int,
    learning_rate: float,
    warmup_steps: int,
    on_step: Callable[[int, float], None] | None,
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / max(1, warmup_steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    for step, (tokens, labels) in enumerate(batches, start=1):
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits  # (batch, length - 1, vocabulary)
        loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORED)
        optimizer.zero_grad()
        torch.autograd.backward([loss])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(step, loss.item())
    model.eval()


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
