"""Verdicts from an HTTP endpoint."""
