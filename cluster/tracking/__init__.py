"""The records of a run: `metrics.jsonl`, W&B, the terminal and transcripts. Importing it does not import wandb."""

from cluster.tracking.console import JsonConsole, RunConsole
from cluster.tracking.jsonl import MetricsFile, read_metrics
from cluster.tracking.tracker import Tracker

__all__ = ["JsonConsole", "MetricsFile", "RunConsole", "Tracker", "read_metrics"]
