"""Padded, batched log-probabilities are those of each sample alone, whatever lies in the padding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from cluster.core.types import TrainingSample
from learner.model.policy import Policy, TokenBatch, response_logprobs, sequence_logprobs
from tests.builders import tiny_llama

VOCABULARY = 32
EOS = 0  # also what TokenBatch fills its padding with
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["relative positions", "absolute positions"])
def policy(request: pytest.FixtureRequest) -> Policy:
    """Llama's rotations do not see where a sample begins; learned positions, as GPT-2's, do."""
    if request.param == "relative positions":
        return Policy(tiny_llama(VOCABULARY))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5
        )
        return Policy(GPT2LMHeadModel(config).double().eval())


def make_sample(prompt: list[int], response: list[int]) -> TrainingSample:
    logprobs = -np.arange(1, len(response) + 1, dtype=np.float32)
    return TrainingSample(
        np.array(prompt), np.array(response), logprobs, advantage=len(prompt), scale=1 / len(response)
    )


TOKENS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9)
SAMPLES = st.lists(st.builds(make_sample, TOKENS, TOKENS), min_size=1, max_size=4)
MIXED = [
    make_sample([3, EOS, 9, 4], [7, 5, EOS]),
    make_sample([EOS], [EOS]),
    make_sample([8, 9], [1, 2, 3, 4, 5, EOS]),
]


def alone(policy: Policy, sample: TrainingSample, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies of one sample's response, unpadded, from the definition."""
    ids = torch.from_numpy(np.concatenate([sample.prompt_token_ids, sample.response_token_ids]))
    with torch.no_grad():
        logits = policy.model(input_ids=ids[None], use_cache=False).logits[0]
    distribution = torch.distributions.Categorical(logits=logits / temperature)
    first = len(sample.prompt_token_ids) - 1
    scores = torch.stack([distribution.logits[i, ids[i + 1]] for i in range(first, len(ids) - 1)])
    return scores, distribution.entropy()[first:-1]


@settings(max_examples=25)
@given(samples=SAMPLES, temperature=st.sampled_from([0.5, 1.0, 1.7]))
def test_a_sample_in_a_batch_scores_as_it_does_alone(
    policy: Policy, samples: list[TrainingSample], temperature: float
) -> None:
    batch = TokenBatch.from_samples(samples, CPU)
    logprobs, entropy = response_logprobs(policy, batch, temperature)
    assert logprobs.shape == entropy.shape == batch.response_mask_BT.shape
    for i, sample in enumerate(samples):
        expected_logprobs, expected_entropy = alone(policy, sample, temperature)
        length = len(sample.response_token_ids)
        torch.testing.assert_close(logprobs[i, :length], expected_logprobs, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(entropy[i, :length], expected_entropy, rtol=1e-9, atol=1e-9)
        assert (logprobs[i, length:] == 0).all()
        assert (entropy[i, length:] == 0).all()


def test_temperature_divides_the_logits(policy: Policy) -> None:
    batch = TokenBatch.from_samples(MIXED, CPU)
    cold, hot = (response_logprobs(policy, batch, temperature)[1] for temperature in (0.5, 2.0))
    assert (cold < hot)[batch.response_mask_BT].all()


@given(samples=SAMPLES)
def test_a_sequence_is_what_the_responses_last_token_is_predicted_from(samples: list[TrainingSample]) -> None:
    batch = TokenBatch.from_samples(samples, CPU)
    width = max(sample.tokens for sample in samples) - 1
    assert batch.input_ids_SL.shape == (len(samples), width)
    predictors = iter(batch.predictors_N.tolist())
    for i, sample in enumerate(samples):
        prompt, response = sample.prompt_token_ids.tolist(), sample.response_token_ids.tolist()
        assert batch.input_ids_SL[i, : sample.tokens - 1].tolist() == (prompt + response)[:-1]
        for t in range(len(response)):
            assert next(predictors) == i * width + len(prompt) - 1 + t
        assert batch.response_ids_BT[i, : len(response)].tolist() == response
        assert batch.response_mask_BT[i].nonzero().flatten().tolist() == list(range(len(response)))
        assert batch.sampler_logprobs_BT[i, : len(response)].tolist() == sample.sampler_logprobs.tolist()
    assert list(predictors) == []
    assert batch.advantages_B.tolist() == [sample.advantage for sample in samples]
    assert batch.scales_B.tolist() == pytest.approx([sample.scale for sample in samples])


def test_a_response_ends_by_its_length_not_by_an_id(policy: Policy) -> None:
    """The end-of-sequence token is learned, in the middle too, though padding has the same id."""
    batch = TokenBatch.from_samples(MIXED, CPU)
    assert (batch.response_ids_BT[0] == EOS).sum() > 1, "its end-of-sequence token, and padding"
    assert batch.response_mask_BT.sum(dim=1).tolist() == [3, 1, 6]


@settings(max_examples=10)
@given(filler=st.integers(0, VOCABULARY - 1))
def test_padding_ids_mean_nothing(policy: Policy, filler: int) -> None:
    batch = TokenBatch.from_samples(MIXED, CPU)
    columns = torch.arange(batch.input_ids_SL.shape[1])
    padding = columns >= torch.tensor([[sample.tokens - 1] for sample in MIXED])
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
    batch = TokenBatch.from_samples(MIXED, CPU)
    logprobs, entropy = response_logprobs(policy, batch, 1.0)
    assert logprobs.requires_grad
    assert not entropy.requires_grad
    assert response_logprobs(policy, batch, 1.0, entropy_gradient=True)[1].requires_grad


@settings(max_examples=10)
@given(tokens=st.lists(st.integers(0, VOCABULARY - 1), min_size=2, max_size=9))
def test_a_probe_scores_all_but_the_first_token_at_temperature_one(policy: Policy, tokens: list[int]) -> None:
    probe = sequence_logprobs(policy, tokens, CPU)
    expected, _ = alone(policy, make_sample(tokens[:1], tokens[1:]), temperature=1.0)
    assert probe.dtype == np.float32
    assert probe == pytest.approx(expected.numpy(), abs=1e-5)
