"""Solved examples: how often, which ones, and that they fit."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.configuration.example_prompts import SolvedExamples, joined
from cluster.training.examples import ExamplePrompts, examples_probability
from cluster.training.prompts import UnusablePromptError
from learner.model.supervised import character_tokenizer
from reward.tasks.countdown.puzzles import in_several_orders
from reward.tasks.countdown.task import CountdownOptions, CountdownTask
from rollout.engine.chat_template import ChatTemplate, PromptError
from rollout.engine.tokenizer import EncodedPrompt
from tests.cluster.training.rescues import prompt_of, rescue_config
from tests.rollout.engine.chat_templates import FAMILIES
from tests.synthetic import SyntheticTask, synthetic_examples

ROWS = 40


@given(fraction=st.floats(0, 1, allow_subnormal=False), fade=st.integers(1, 1000), step=st.integers(0, 2000))
def test_the_probability_falls_to_exactly_0(fraction: float, fade: int, step: int) -> None:
    config = rescue_config(examples=1, examples_fraction=fraction, examples_fade_steps=fade).rescue
    found = examples_probability(config, step)
    assert examples_probability(config, 0) == fraction
    assert examples_probability(config, step + 1) <= found
    assert (found == 0) == (fraction == 0 or step >= fade)
    assert found == pytest.approx(fraction * max(0, fade - step) / fade)
    assert examples_probability(config.model_copy(update={"examples": 0}), step) == 0


@given(step=st.integers(0, 20), seed=st.integers(0, 50), count=st.integers(1, 3))
def test_seed_prompt_and_step_decide_the_examples(step: int, seed: int, count: int) -> None:
    """After the last step with examples every prompt is as it was. The problem itself is never among them."""
    config = rescue_config(seed, examples=count, examples_fraction=0.5, examples_fade_steps=10)
    config = config.model_copy(
        update={"model": config.model.model_copy(update={"max_context_tokens": 10_000})}
    )
    one, other = (synthetic_examples(config, ROWS) for _ in range(2))
    assert one is not None
    assert other is not None
    for row in range(8):
        prompt = prompt_of(row)
        found = one.prepared(prompt, step)
        assert found == other.prepared(prompt, step)
        if not found.has_examples:
            assert found is prompt
            continue
        assert step < 10
        *examples, asked = found.text.split("\n\n")
        assert asked == f"square of {row}: "
        assert len(set(examples)) == count
        for example in examples:
            number = int(example.removeprefix("square of ").partition(":")[0])
            assert example == f"square of {number}: it is {number**2}"
            assert number != row
        assert found.token_ids == tuple(map(ord, found.text))
        assert (found.id, found.problem, found.sampling) == (prompt.id, prompt.problem, prompt.sampling)


def test_a_prompt_that_comes_again_has_other_examples() -> None:
    texts = {examples_of(1000).prepared(prompt_of(5, epoch), 0).text for epoch in range(20)}
    assert len(texts) > 10


def test_about_the_right_fraction_of_prompts_has_examples() -> None:
    config = rescue_config(examples=1, examples_fraction=0.5, examples_fade_steps=4)
    examples = synthetic_examples(config, ROWS)
    assert examples is not None
    for step, expected in ((0, 0.5), (2, 0.25), (4, 0.0)):
        found = [examples.prepared(prompt_of(row % ROWS, row), step).has_examples for row in range(2000)]
        assert sum(found) / len(found) == pytest.approx(expected, abs=0.05 if expected else 0)


@settings(max_examples=20)
@given(seed=st.integers(0, 99), draw=st.text(max_size=5))
def test_a_puzzle_in_another_order_is_the_puzzle_itself(seed: int, draw: str) -> None:
    """Its solution would be the answer."""
    task = CountdownTask(CountdownOptions(train_puzzles=4))
    puzzles = in_several_orders(task.problems("train"), 3, seed)
    examples = SolvedExamples(task, task.solution, puzzles, count=2, seed=seed)
    for row, puzzle in enumerate(puzzles):
        rendered = examples.prompt(row, draw)
        assert isinstance(rendered, str)
        assert rendered.endswith(str(task.render(puzzle)))
        for example in rendered.removesuffix(str(task.render(puzzle))).split("\n\n")[:-1]:
            assert task.verify(puzzle, example.partition("\n")[2]).outcome == "incorrect"


def messages(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in pairs]


def test_examples_are_earlier_turns_of_a_conversation() -> None:
    """The system message stands once, and an answer that the prompt begins is continued."""
    plain = messages(("system", "Be short."), ("user", "1 + 1?"))
    begun = messages(("system", "Be short."), ("user", "1 + 2?"), ("assistant", "It is "))
    assert joined([(plain, "2"), (begun, "3")], begun) == messages(
        ("system", "Be short."),
        ("user", "1 + 1?"),
        ("assistant", "2"),
        ("user", "1 + 2?"),
        ("assistant", "It is 3"),
        ("user", "1 + 2?"),
        ("assistant", "It is "),
    )
    assert joined([("1 + 1 = ", "2")], "1 + 2 = ") == "1 + 1 = 2\n\n1 + 2 = "


@pytest.mark.parametrize("family", FAMILIES)
def test_chat_templates_of_all_families_show_the_examples(family: str) -> None:
    """Each turn is there, in its order, and the problem comes last."""
    tokenizer: Any = character_tokenizer("".join(sorted(set(string.printable) - set("\r\x0b\x0c"))), (), 4096)
    tokenizer.chat_template = FAMILIES[family].template
    task = CountdownTask(CountdownOptions(style="chat", train_puzzles=20))
    puzzles = task.problems("train")
    rendered = SolvedExamples(task, task.solution, puzzles, count=2, seed=0).prompt(3, "a draw")
    assert isinstance(rendered, list)
    assert [message["role"] for message in rendered] == ["user", "assistant"] * 2 + ["user"]
    assert rendered[-1:] == task.render(puzzles[3])
    text, position = ChatTemplate(tokenizer, Path("some/model")).render(rendered), 0
    for message in rendered:
        position = text.index(message["content"].strip(), position) + 1


def examples_of(max_context_tokens: int, encode: Any = None, solve: Any = None) -> ExamplePrompts:
    config = rescue_config(examples=1, examples_fraction=1.0)
    model = config.model.model_copy(update={"max_context_tokens": max_context_tokens})
    task = SyntheticTask()
    pool = SolvedExamples(task, solve or task.solution, range(ROWS), 1, 0)
    encode = encode or (lambda text: EncodedPrompt(text, tuple(map(ord, text))))
    return ExamplePrompts(config.model_copy(update={"model": model}), pool, encode)


def test_a_prompt_that_does_not_fit_goes_without_examples() -> None:
    """The limit is exact to the token: 12 tokens remain for the response."""
    prompt = prompt_of(5)
    found = examples_of(1000).prepared(prompt, 0)
    needed = len(found.token_ids) + 12
    assert examples_of(needed).prepared(prompt, 0) == found
    assert examples_of(needed - 1).prepared(prompt, 0) is prompt


def refusing(text: str) -> EncodedPrompt:
    raise PromptError("the chat template leaves out the assistant message")


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (
            examples_of(30),
            "no prompt fits into the context with its examples: of 40 that were tried, the shortest",
        ),
        (examples_of(1000, solve=lambda problem: None), "too few training problems have a known solution"),
        (examples_of(1000, encode=refusing), "leaves out the assistant message"),
    ],
)
def test_examples_that_no_prompt_can_have_stop_the_run(examples: ExamplePrompts, message: str) -> None:
    with pytest.raises(UnusablePromptError, match=f"^rescue.examples.*{message}"):
        examples.refuse_unusable()
    assert examples.prepared(prompt_of(5), 0) == prompt_of(5)
    examples_of(1000).refuse_unusable()
