"""A row as a user may have it, to show what is asked and answered."""

from __future__ import annotations

from reward.task import Example, Sample

SUM = Sample(
    options={},
    problem={"prompt": "What is 17 + 25?", "answer": "42"},
    example=Example(correct="Answer: 42", incorrect="Answer: 43"),
)
