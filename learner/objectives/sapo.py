"""SAPO: Gao et al., "Soft Adaptive Policy Optimization", arXiv 2511.20347.

    L = − (1/N) Σ_i (1/|τ_i|) Σ_t (4/τ) σ( τ (r_it − 1) ) A_i    τ = 1 if A_i > 0 else 1.05

A gate that fades in place of a clip: its slope is 1 at r = 1 and falls on both sides, faster for negative advantages.
"""

from learner.objectives.aggregation import mean_over_responses
from learner.objectives.objective import Defaults, Objective, Surrogate, Tokens

POSITIVE_TEMPERATURE = 1.0
NEGATIVE_TEMPERATURE = 1.05


def soft_gate(tokens: Tokens, clip_low: float | None, clip_high: float | None) -> Surrogate:
    advantages_B1 = tokens.advantages_B1
    positive_B1 = advantages_B1.new_full(advantages_B1.shape, POSITIVE_TEMPERATURE)
    temperature_B1 = positive_B1.where(advantages_B1 > 0, NEGATIVE_TEMPERATURE)
    ratio_BT = tokens.log_ratio_BT.exp()
    gate_BT = (temperature_B1 * (ratio_BT - 1)).sigmoid() * 4 / temperature_B1
    nowhere_BT = tokens.mask_BT.new_zeros(tokens.mask_BT.shape)
    return Surrogate(gate_BT * advantages_B1, ratio_BT, nowhere_BT, nowhere_BT)


SAPO = Objective(soft_gate, mean_over_responses, Defaults(clip_low=None, clip_high=None))
