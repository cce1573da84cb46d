"""`launch.py replay`: read the batch of an update that was not finite, and compute that update again."""
