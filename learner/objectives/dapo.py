"""DAPO: Yu et al., arXiv 2503.14476.

    L = − 1/(Σ|τ|) Σ_i Σ_t min( r_it A_i , clip(r_it, 1 − ε_low, 1 + ε_high) A_i )    ε_high > ε_low

Groups that are all right or all wrong are dropped and others asked for. Its soft over-long penalty is an option here
(objective.overlong_tokens), because its measure depends on the task.
"""

from learner.objectives.aggregation import mean_over_tokens
from learner.objectives.clipping import clip_token_ratio
from learner.objectives.objective import Defaults, Objective

DAPO = Objective(clip_token_ratio, mean_over_tokens, Defaults(clip_high=0.28, dynamic_sampling=True))
