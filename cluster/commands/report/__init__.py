"""`launch.py report`: plots of runs as PNG files, and one HTML page without external dependencies."""
