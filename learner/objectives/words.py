"""An objective and its options in one line, for `launch.py check` and for the log of a run."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.config import ObjectiveConfig
from learner.objectives import chosen


def in_words(config: ObjectiveConfig) -> str:
    """`a_hpo: alpha adaptive from 0.1, clip 0.2/0.2, advantages scaled by group`; options that are off are left out."""
    return f"{config.name}: {', '.join(_parts(chosen(config)[1]))}"


def _parts(settings: ObjectiveConfig) -> Iterator[str]:
    adaptive = settings.alpha == "adaptive"
    yield f"alpha adaptive from {settings.alpha_min:g}" if adaptive else f"alpha {settings.alpha:g}"
    clips = [f"{clip:g}" if clip is not None else "none" for clip in (settings.clip_low, settings.clip_high)]
    yield f"clip {'/'.join(clips)}"
    yield f"advantages scaled by {settings.advantage_scaling}"
    if settings.dynamic_sampling:
        yield "dynamic sampling"
    if settings.overlong_tokens:
        yield f"over-long penalty over the last {settings.overlong_tokens} tokens"
    if settings.mask_cut_off:
        yield "cut-off responses masked"
    if settings.importance_cap is not None:
        yield f"importance weights by {settings.importance_level} up to {settings.importance_cap:g}"
    if settings.entropy_bonus:
        yield f"entropy bonus {settings.entropy_bonus:g}"
    if settings.kl_beta:
        yield f"KL {settings.kl_estimator} times {settings.kl_beta:g}"
