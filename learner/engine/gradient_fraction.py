"""How hard each side of a batch pulls at the weights: the gradient of its loss alone, and the norm of that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def take_gradient_norm(engine: DeepSpeedEngine) -> float:
    """The norm of the gradient accumulated since the last step, over all ranks. It is forgotten then, and nothing is
    learned from it. A collective.

    Each ZeRO stage keeps gradients in its own way, and only `step` knows to finish, measure and clear them. So this is
    a step in which the optimizer does nothing, and which neither the learning rate's schedule nor the engine count.
    """
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)  # ZeRO's is around torch's
    update, schedule = optimizer.step, engine.lr_scheduler
    counted = engine.global_steps, engine.global_samples
    optimizer.step, engine.lr_scheduler = _no_update, None
    try:
        engine.step()
    finally:
        optimizer.step, engine.lr_scheduler = update, schedule
        engine.global_steps, engine.global_samples = counted
    return float(engine.get_global_grad_norm())


def _no_update(*_: Any, **__: Any) -> None:
    pass
