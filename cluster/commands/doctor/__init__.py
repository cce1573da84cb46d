"""`launch.py doctor`: check that everything a run needs is present.

command.py      the command line and its table
examination.py  examines this machine, or each node of a cluster, and a configuration
facts.py        measures one machine, in a process on it
assessment.py   turns facts into findings (ok, warn, fail) with fixes; pure
"""
