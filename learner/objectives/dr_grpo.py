"""Dr. GRPO: Liu et al., "Understanding R1-Zero-Like Training: A Critical Perspective", arXiv 2503.20783.

    L = − 1/(N T_max) Σ_i Σ_t min( r_it A_i , clip(r_it, 1 − ε_low, 1 + ε_high) A_i )    A_i = R_i − mean_g

Neither a response's length nor its group's deviation divides it; T_max is rollout.max_response_tokens.
"""

from learner.objectives.aggregation import sum_over_budget
from learner.objectives.clipping import clip_token_ratio
from learner.objectives.objective import Defaults, Objective

DR_GRPO = Objective(clip_token_ratio, sum_over_budget, Defaults(advantage_scaling="none"))
