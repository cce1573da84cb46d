"""The names of everything that commands write into a run directory, relative to it, with `*` for any text."""

from __future__ import annotations

DIRECTORIES = (
    ".",
    "logs",
    "transcripts",
    "failed_batches",
    "evaluations",
    "checkpoints",
    "final_model",
    "wandb",
    "export",
    "export/logs",
)
"""The directories of a run, and of the commands that write directories like it (eval, plan, export)."""
FILES = (
    "README.md",
    "config.yaml",
    "code_version",
    "ray_address",
    "summary.json",
    "wandb/run_id",
    "transcripts/step_*.md",
    "transcripts/step_*.jsonl",
    "failed_batches/step_*.jsonl",
    "evaluations/step_*.json",
    "evaluations/step_*.jsonl",
    "evaluations/step_*.html",
    "evaluation.json",
    "evaluation.jsonl",
    "evaluation.html",
    "plan.json",
    "plan.html",
    *(f"final_model/*.{suffix}" for suffix in ("json", "safetensors", "jinja", "txt", "model")),
)
"""Their files that are written as a whole."""
GROWING_FILES = ("metrics.jsonl", "metrics.superseded.jsonl", "logs/*.log", "export/logs/*.log")
"""Their files to which lines are appended."""
