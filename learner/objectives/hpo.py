"""HPO and its adaptive form A-HPO: Sana et al., arXiv 2605.30201.

    L = − (1/N) Σ_i (1/L̄) Σ_t min( r_it w_i A_i , clip(r_it, 1 − ε_low, 1 + ε_high) w_i A_i )

    w_i = 1 if A_i ≥ 0 else α    L̄ = the mean length of the whole batch's responses

HPO has a fixed α; A-HPO takes α = clip(p̂⁺ / p̂⁻, α_min, 1) in each batch (`learner/advantages.py`). HPO with α = 1 is
DAPO's loss with a symmetric clip, since N L̄ = Σ|τ|.
"""

from learner.objectives.aggregation import mean_over_tokens
from learner.objectives.clipping import clip_token_ratio
from learner.objectives.objective import Defaults, Objective

# 0.6 is ours: about the best fixed value that the paper reports (TeleLogs); it names no default.
HPO = Objective(clip_token_ratio, mean_over_tokens, Defaults(alpha=0.6))
A_HPO = Objective(clip_token_ratio, mean_over_tokens, Defaults(alpha="adaptive"))
