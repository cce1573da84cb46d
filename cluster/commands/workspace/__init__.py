"""`launch.py workspace`: a saved view of a W&B project, with the sections and charts of the report.

definition.py  from the catalogue of metrics to W&B's words for it; needs no network
saving.py      gives it to W&B, with a deadline
command.py     the command
"""
