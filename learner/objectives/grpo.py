"""GRPO: Shao et al., "DeepSeekMath", arXiv 2402.03300.

L = − (1/N) Σ_i (1/|τ_i|) Σ_t min( r_it A_i , clip(r_it, 1 − ε_low, 1 + ε_high) A_i )
"""

from learner.objectives.aggregation import mean_over_responses
from learner.objectives.clipping import clip_token_ratio
from learner.objectives.objective import Objective

GRPO = Objective(clip_token_ratio, mean_over_responses)
