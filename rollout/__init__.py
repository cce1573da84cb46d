"""Sampling: vLLM rollout workers, their weights, and the accounting of prompts."""
