"""A GGUF file as an ordinary Hugging Face directory."""

from __future__ import annotations

from pathlib import Path


def convert_gguf(file: Path, directory: Path) -> None:
    """Dequantise the model in `file` and save it, with its tokenizer, as a float32 Hugging Face directory.

    The result computes with the quantised values; it is not the model that the file was once made from.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # transformers takes the loaded model for a quantised one and will not save it. Its weights are plain float32,
    # so a model # of the same configuration, less the quantisation, is what we want.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(directory)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(directory)
