"""`launch.py compare`: train with several settings and seeds, and estimate the differences between the settings."""
