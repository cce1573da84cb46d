"""A check for a machine with a GPU: `python -m benchmarks.gpu_check` (docs/gpu_check.md).

    __main__ ─▶ runner ── one process per part, with a time limit ──▶ child ─▶ environment, link, paths, …
                  │                                                     │ findings (a file)
                  └─▶ report.md, report.json ◀──────────────────────────┘

It is in benchmarks/ because it uses the learner's and the rollouts' modules together, which no package may do below
`cluster.training`, and because it is not part of a run. The runner needs the standard library alone, so that it works
on a machine where packages are missing.
"""
