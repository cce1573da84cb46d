"""`launch.py compare`: the same task and seeds under several settings, and what the differences are worth."""
