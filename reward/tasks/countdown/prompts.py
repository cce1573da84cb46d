"""A Countdown puzzle as a language model sees it."""

from reward.tasks.countdown.puzzles import Puzzle

# Every character that a compact prompt, or a warm-up response to one, can hold (the answer tags are apart).
COMPACT_CHARACTERS = "0123456789+-*/()= \n"
ANSWER_TAGS = ("<answer>", "</answer>")

_INSTRUCTION = """\
Using the numbers {numbers}, write an arithmetic expression that equals {target}.
Use every number exactly once. You may use +, -, *, / and parentheses, and nothing else.
Think step by step, then give only the expression, without an equals sign, between <answer> and </answer>, \
for example <answer>(1 + 2) / 3</answer>."""


def compact_prompt(puzzle: Puzzle) -> str:
    """For the character-level starter model: `3 5 7 = 38` and a line break."""
    return f"{' '.join(map(str, puzzle.numbers))} = {puzzle.target}\n"


def chat_prompt(puzzle: Puzzle) -> list[dict[str, str]]:
    """For instruct models: the chat messages to put through the model's own template."""
    numbers = ", ".join(map(str, puzzle.numbers))
    return [{"role": "user", "content": _INSTRUCTION.format(numbers=numbers, target=puzzle.target)}]
