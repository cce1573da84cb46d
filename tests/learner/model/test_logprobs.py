"""Padded, batched log-probabilities are those of each row alone, whatever lies in the padding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from learner.model.logprobs import TokenBatch, response_logprobs, sequence_logprobs
from learner.model.policy import Policy
from learner.objective.training_batch import Row
from tests.builders import tiny_llama

VOCABULARY = 32
EOS = 0  # also what TokenBatch fills its padding with
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["relative positions", "absolute positions"])
def policy(request: pytest.FixtureRequest) -> Policy:
    """Llama's rotations do not see where a row begins; learned positions, as GPT-2's, do."""
    if request.param == "relative positions":
        return Policy(tiny_llama(VOCABULARY))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5
        )
        return Policy(GPT2LMHeadModel(config).double().eval())


def make_row(prompt: list[int], response: list[int]) -> Row:
    logprobs = -np.arange(1, len(response) + 1, dtype=np.float32)
    return Row(np.array(prompt), np.array(response), logprobs, advantage=len(prompt), scale=1 / len(response))


TOKENS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9)
ROWS = st.lists(st.builds(make_row, TOKENS, TOKENS), min_size=1, max_size=4)
MIXED = [
    make_row([3, EOS, 9, 4], [7, 5, EOS]),
    make_row([EOS], [EOS]),
    make_row([8, 9], [1, 2, 3, 4, 5, EOS]),
]


def alone(policy: Policy, row: Row, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies of one row's response, unpadded, from the definition."""
    ids = torch.from_numpy(np.concatenate([row.prompt_token_ids, row.response_token_ids]))
    with torch.no_grad():
        logits = policy.model(input_ids=ids[None], use_cache=False).logits[0]
    distribution = torch.distributions.Categorical(logits=logits / temperature)
    first = len(row.prompt_token_ids) - 1
    scores = torch.stack([distribution.logits[i, ids[i + 1]] for i in range(first, len(ids) - 1)])
    return scores, distribution.entropy()[first:-1]


@settings(max_examples=25)
@given(rows=ROWS, temperature=st.sampled_from([0.5, 1.0, 1.7]))
def test_a_row_in_a_batch_scores_as_it_does_alone(
    policy: Policy, rows: list[Row], temperature: float
) -> None:
    batch = TokenBatch.from_rows(rows, CPU)
    logprobs, entropy = response_logprobs(policy, batch, temperature)
    assert logprobs.shape == entropy.shape == batch.response_mask_BT.shape
    for i, row in enumerate(rows):
        expected_logprobs, expected_entropy = alone(policy, row, temperature)
        length = len(row.response_token_ids)
        torch.testing.assert_close(logprobs[i, :length], expected_logprobs, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(entropy[i, :length], expected_entropy, rtol=1e-9, atol=1e-9)
        assert (logprobs[i, length:] == 0).all()
        assert (entropy[i, length:] == 0).all()


def test_temperature_divides_the_logits(policy: Policy) -> None:
    batch = TokenBatch.from_rows(MIXED, CPU)
    cold, hot = (response_logprobs(policy, batch, temperature)[1] for temperature in (0.5, 2.0))
    assert (cold < hot)[batch.response_mask_BT].all()


@given(rows=ROWS)
def test_a_sequence_is_what_the_responses_last_token_is_predicted_from(rows: list[Row]) -> None:
    batch = TokenBatch.from_rows(rows, CPU)
    width = max(row.tokens for row in rows) - 1
    assert batch.input_ids_SL.shape == (len(rows), width)
    predictors = iter(batch.predictors_N.tolist())
    for i, row in enumerate(rows):
        prompt, response = row.prompt_token_ids.tolist(), row.response_token_ids.tolist()
        assert batch.input_ids_SL[i, : row.tokens - 1].tolist() == (prompt + response)[:-1]
        for t in range(len(response)):
            assert next(predictors) == i * width + len(prompt) - 1 + t
        assert batch.response_ids_BT[i, : len(response)].tolist() == response
        assert batch.response_mask_BT[i].nonzero().flatten().tolist() == list(range(len(response)))
        assert batch.sampler_logprobs_BT[i, : len(response)].tolist() == row.sampler_logprobs.tolist()
    assert list(predictors) == []
    assert batch.advantages_B.tolist() == [row.advantage for row in rows]
    assert batch.scales_B.tolist() == pytest.approx([row.scale for row in rows])


def test_a_response_ends_by_its_length_not_by_an_id(policy: Policy) -> None:
    """The end-of-sequence token is learned, in the middle too, though padding has the same id."""
    batch = TokenBatch.from_rows(MIXED, CPU)
    assert (batch.response_ids_BT[0] == EOS).sum() > 1, "its end-of-sequence token, and padding"
    assert batch.response_mask_BT.sum(dim=1).tolist() == [3, 1, 6]


@settings(max_examples=10)
@given(filler=st.integers(0, VOCABULARY - 1))
def test_padding_ids_mean_nothing(policy: Policy, filler: int) -> None:
    batch = TokenBatch.from_rows(MIXED, CPU)
    columns = torch.arange(batch.input_ids_SL.shape[1])
    padding = columns >= torch.tensor([[row.tokens - 1] for row in MIXED])
    assert padding.any()
    other = replace(
        batch,
        input_ids_SL=batch.input_ids_SL.masked_fill(padding, filler),
        response_ids_BT=batch.response_ids_BT.where(batch.response_mask_BT, filler),
    )
    for ours, theirs in zip(
        response_logprobs(policy, batch, 1.0), response_logprobs(policy, other, 1.0), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_log_probabilities_carry_a_gradient_and_the_entropy_if_asked(policy: Policy) -> None:
    batch = TokenBatch.from_rows(MIXED, CPU)
    logprobs, entropy = response_logprobs(policy, batch, 1.0)
    assert logprobs.requires_grad
    assert not entropy.requires_grad
    assert response_logprobs(policy, batch, 1.0, entropy_gradient=True)[1].requires_grad


@settings(max_examples=10)
@given(tokens=st.lists(st.integers(0, VOCABULARY - 1), min_size=2, max_size=9))
def test_a_probe_scores_all_but_the_first_token_at_temperature_one(policy: Policy, tokens: list[int]) -> None:
    probe = sequence_logprobs(policy, tokens, CPU)
    expected, _ = alone(policy, make_row(tokens[:1], tokens[1:]), temperature=1.0)
    assert probe.dtype == np.float32
    assert probe == pytest.approx(expected.numpy(), abs=1e-5)
