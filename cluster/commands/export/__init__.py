"""`launch.py export`: write the model of a checkpoint as a Hugging Face directory."""
