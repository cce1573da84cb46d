"""`launch.py doctor`: is everything there that a run needs?

facts.py        what a machine has, found out in a process on it
assessment.py    from facts to findings (ok, warn, fail, and the command that mends it); pure
examination.py  asks this machine, or each node of a cluster, and looks at a configuration
report.py       the table
"""
