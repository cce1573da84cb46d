"""A user's Python function as verifier."""
