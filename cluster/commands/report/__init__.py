"""Pictures and pages of runs, for people: PNG plots, and one HTML file that needs nothing else."""
