"""Runs as jobs of a Ray cluster: `launch.py submit`, `status`, `logs`, `stop` and `list`.

this machine                                      the cluster
submit ─▶ package.py (what travels)   ──HTTP──▶   job server ─▶ `python launch.py train …` in the package
       ─▶ keys.py (a W&B key, sealed) ──HTTP──▶   the run opens it; Ray only ever holds the sealed form
follow ◀─ following.py                ◀──HTTP──   the job's log
again  ◀─ resubmission.py: is it worth another try?
"""
