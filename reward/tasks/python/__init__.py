"""A user's own function as verifier."""
