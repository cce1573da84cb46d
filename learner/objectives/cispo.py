"""CISPO: "MiniMax-M1", arXiv 2506.13585; with the cap that ScaleRL found to do well, arXiv 2510.13786.

    L = − 1/(Σ|τ|) Σ_i Σ_t stopgrad( min(r_it, c) ) A_i log π_θ    c = 1 + ε_high = 5

The weight is clipped in place of the surrogate, so that every token keeps its gradient. There is no lower bound.
"""

from learner.objectives.aggregation import mean_over_tokens
from learner.objectives.objective import Defaults, Objective, Surrogate, Tokens


def weighted_logprob(tokens: Tokens, clip_low: float | None, clip_high: float | None) -> Surrogate:
    assert clip_high is not None
    cap = 1 + clip_high
    ratio_BT = tokens.log_ratio_BT.detach().exp()
    nowhere_BT = tokens.mask_BT.new_zeros(tokens.mask_BT.shape)
    value_BT = ratio_BT.clamp(max=cap) * tokens.advantages_B1 * tokens.logprobs_BT
    return Surrogate(value_BT, ratio_BT, nowhere_BT, ratio_BT > cap)


CISPO = Objective(weighted_logprob, mean_over_tokens, Defaults(clip_low=None, clip_high=4.0))
