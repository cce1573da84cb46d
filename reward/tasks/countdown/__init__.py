"""Countdown: use every given number exactly once, with + - * /, to reach the target."""
