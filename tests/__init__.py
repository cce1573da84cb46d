"""Each test is named after the property that it checks. Properties of many inputs are tested with hypothesis."""

from pathlib import Path

from hypothesis import settings

PROJECT = Path(__file__).parents[1]

# No deadlines: the duration of an example depends on the load of the machine, not on the property.
settings.register_profile("laws", deadline=None, max_examples=50)
settings.load_profile("laws")
