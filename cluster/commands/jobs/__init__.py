"""Run trainings as jobs of a Ray cluster: `launch.py submit`, `status`, `logs`, `stop` and `list`.

    command.py      the command line
    package.py      the files that are sent to the cluster
    submission.py   the command, environment and keys of a job, and its submission
    server.py       the job server of a Ray cluster
    supervision.py  follows a job's log, and submits the run again if it was lost

The keys (of W&B, for example) are sent sealed; `cluster/runtime/job.py` describes the protocol.
"""
