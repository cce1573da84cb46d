"""Prompts from files and from Hugging Face data sets, for tasks whose problems are rows."""
