"""What DeepSpeed is told: partitioning, precision, where things are kept. Pure, torch-free.

In bfloat16 the model computes in bfloat16; everything that sums up small things is float32: the optimizer's copy of
the weights, its moments, and the gradients from one micro-batch to the next. ZeRO 0 is the exception: there DeepSpeed
sums gradients in bfloat16.
"""

from __future__ import annotations

from typing import Any

from cluster.core.config import LearnerConfig


def deepspeed_config(learner: LearnerConfig, dtype: str) -> dict[str, Any]:
    """DeepSpeed's configuration for a model in `dtype`."""
    zero: dict[str, Any] = {"stage": learner.zero_stage}
    if learner.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": learner.gpus_per_rank > 0}
    if learner.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": learner.gpus_per_rank > 0}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # We call step() when the batch is done: the number of micro-batches differs from batch to batch.
        "managed_gradient_accumulation": False,
        "gradient_clipping": learner.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == "bfloat16"},
        "steps_per_print": 10**9,
    }
    if dtype == "bfloat16" and learner.zero_stage > 0:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    if dtype == "bfloat16":
        config["communication_data_type"] = "fp32"
    return config
