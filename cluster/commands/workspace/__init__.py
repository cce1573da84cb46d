"""`launch.py workspace`: save a view of a W&B project with the sections and charts of the report."""
