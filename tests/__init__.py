"""Tests are named after the laws that they check. Those with a law for many inputs draw them with hypothesis."""

from pathlib import Path

from hypothesis import settings

PROJECT = Path(__file__).parents[1]

# No deadlines: how long an example takes says how busy the machine is, not whether the law holds.
settings.register_profile("laws", deadline=None, max_examples=50)
settings.load_profile("laws")
