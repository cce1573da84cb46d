"""Verdicts from an HTTP service."""
