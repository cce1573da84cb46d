"""`launch.py train`: train a model, or resume a run that was interrupted."""
