"""The model of the current weights as an ordinary Hugging Face directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cluster.core.actor_options import LearnerOptions
from learner.engine.deepspeed_engine import whole_weights

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

ADAPTER_FOLDER = "adapter"
"""Inside an exported directory: the adapter alone, in peft's format."""


def export_model(engine: DeepSpeedEngine, options: LearnerOptions, directory: Path, *, write: bool) -> None:
    """Write the merged model, its tokenizer and, if there is one, the adapter alone. A collective, in which one rank is
    to `write`."""
    from transformers import AutoTokenizer

    lora = options.learner.lora_rank is not None
    with whole_weights(engine, options.learner) as weights:
        if not write:
            return
        state = {name: weight.cpu().clone() for name, weight in weights.items()}
        if lora:
            from learner.model.adapters import save_adapter

            save_adapter(engine.module.model, options.learner, options.model, directory / ADAPTER_FOLDER)
    engine.module.model.save_pretrained(directory, state_dict=state)
    AutoTokenizer.from_pretrained(options.model).save_pretrained(directory)
