"""GSPO: Zheng et al., "Group Sequence Policy Optimization", arXiv 2507.18071.

    L = − (1/N) Σ_i min( s_i A_i , clip(s_i, 1 − ε_low, 1 + ε_high) A_i )    s_i = exp( (1/|τ_i|) Σ_t log r_it )

Written per token: each token of a response carries s_i, and 1/(N |τ_i|) adds them up to one.
"""

from learner.objectives.aggregation import mean_over_responses
from learner.objectives.clipping import clipped
from learner.objectives.objective import Defaults, Objective, Surrogate, Tokens


def clip_sequence_ratio(tokens: Tokens, clip_low: float | None, clip_high: float | None) -> Surrogate:
    lengths_B1 = tokens.mask_BT.sum(dim=1, keepdim=True)
    log_ratio_B1 = (tokens.log_ratio_BT * tokens.mask_BT).sum(dim=1, keepdim=True) / lengths_B1
    ratio_BT = log_ratio_B1.exp().expand_as(tokens.log_ratio_BT)
    return clipped(ratio_BT, tokens.advantages_B1, clip_low, clip_high)


GSPO = Objective(clip_sequence_ratio, mean_over_responses, Defaults(clip_low=3e-4, clip_high=4e-4))
