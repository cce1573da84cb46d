"""`launch.py eval`: measure pass@k and maj@k of a model."""
