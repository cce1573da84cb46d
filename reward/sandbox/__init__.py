"""Verifiers in processes that can be killed: `pool.py` is what others use. Pure of Ray."""
