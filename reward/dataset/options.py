"""Which rows a task asks, and how. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class DatasetOptions(BaseModel):
    """The options that all tasks with prompts from a data set share."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    data: str | None = None
    """A `.jsonl` or `.parquet` file, a directory that `datasets` can load, or a hub id such as `openai/gsm8k`."""
    data_subset: str | None = None
    """Of a data set on the hub (its "config")."""
    data_split: str = "train"
    """Of a Hugging Face data set, whose rows are then cut into ours."""
    eval_data: str | None = None
    """Where held-out prompts come from, if not from `data`; its split, where it has one, is `eval_data_split`."""
    eval_data_split: str = "test"
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Without `eval_data`: a row is held out by the hash of its prompt, the same in every run."""
    prompt_field: str = "prompt"
    """The field with the prompt: text, or chat messages (`[{"role": …, "content": …}, …]`)."""
    style: Literal["chat", "plain"] = "chat"
    """Whether text becomes a user's message in the model's chat template, or is put to the model as it is."""
    system: str | None = None
    """A system message that every conversation begins with."""
    instruction: str | None = None
    """Added to every prompt, after an empty line: how the answer is to be given."""
    category_field: str | None = None
    """The field that says what kind of problem a row is, such as `level` in MATH: evaluations are broken down by it."""
    max_prompt_characters: Annotated[int, Field(ge=1)] | None = None
    """Rows with longer prompts are left out."""
