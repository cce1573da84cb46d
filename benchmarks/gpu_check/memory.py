"""Part 6: the peak memory of one forward and backward pass against a count on meta tensors, which need no memory, and
against the estimate of `launch.py check`, which must not be lower.

The count follows every tensor's storage from its allocation to its release. It knows nothing of the space that kernels
use inside, of the allocator's rounding, and of libraries.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, LlamaForCausalLM
from transformers.masking_utils import AttentionMaskInterface

from benchmarks.gpu_check.findings import Findings, Settings
from benchmarks.gpu_check.models import (
    SMALL,
    TINY,
    WIDE,
    build_policy,
    device_of,
    is_out_of_memory,
    mib,
    model_config,
    peak_memory,
    random_bundle,
)
from cluster.configuration.memory import activation_bytes, output_layer_bytes
from cluster.configuration.model_shape import ModelShape
from cluster.core.config import RunConfig
from learner.model.policy import TokenBatch, response_logprobs
from learner.model.token_logprobs import TokenLogprobs

COUNTED = "gpu_check_counted"
"""The name of an attention function that keeps what a fused kernel keeps."""
LIMIT = 1.3
"""The largest factor between the measured peak and the count, both ways."""


def check_memory(settings: Settings, findings: Findings) -> None:
    device = device_of(settings)
    sizes = TINY if settings.smoke else WIDE if settings.on_gpu else SMALL
    tokens = 256 if settings.smoke else 4096 if settings.on_gpu else 2048
    dtype = torch.bfloat16 if settings.on_gpu else torch.float32
    for checkpointing in (False, True):
        findings.begin(f"counting, gradient checkpointing {'on' if checkpointing else 'off'}")
        counted = count_peak(sizes, dtype, tokens, checkpointing)
        estimated = estimate(sizes, dtype, tokens, checkpointing)
        findings.begin(f"measuring, gradient checkpointing {'on' if checkpointing else 'off'}")
        measured = _measure(sizes, dtype, tokens, checkpointing, device)
        ratio = measured / counted if isinstance(measured, int) else None
        findings.row(
            "peak above weights and gradients",
            {
                "tokens": tokens,
                "gradient checkpointing": checkpointing,
                "measured MiB": mib(measured) if isinstance(measured, int) else measured,
                "counted MiB": mib(counted),
                "measured / counted": "" if ratio is None else round(ratio, 3),
                "estimated MiB": mib(estimated),
            },
        )
        if settings.on_gpu:  # resident memory tells too little about small models on CPU
            on = "on" if checkpointing else "off"
            findings.check(
                f"the count predicts the peak, gradient checkpointing {on}",
                ratio is not None and 1 / LIMIT <= ratio <= LIMIT,
                f"measured {measured}, counted {counted} bytes",
                "A kernel of this build keeps other tensors than expected: compare with the part kernels.",
            )
            findings.check(
                f"the estimate of check covers the peak, gradient checkpointing {on}",
                isinstance(measured, int) and measured <= estimated,
                f"measured {measured}, estimated {estimated} bytes",
                "The memory table of `launch.py check` is too low for this machine: lower "
                "learner.micro_batch_tokens by the factor between the two.",
            )


def estimate(sizes: Mapping[str, Any], dtype: torch.dtype, tokens: int, checkpointing: bool) -> int:
    """Return what `launch.py check` estimates for this pass, in bytes."""
    shape = ModelShape.from_config({"model_type": "llama", "tie_word_embeddings": False, **sizes})
    config = RunConfig.model_validate(
        {
            "model": {"dtype": str(dtype).removeprefix("torch."), "max_context_tokens": tokens},
            "rollout": {"gpus_per_worker": 1},
            "learner": {
                "gpus_per_rank": 1,
                "micro_batch_tokens": tokens,
                "gradient_checkpointing": checkpointing,
            },
        }
    )
    return int(activation_bytes(config, shape) + output_layer_bytes(config, shape))


def _measure(
    sizes: Mapping[str, Any], dtype: torch.dtype, tokens: int, checkpointing: bool, device: torch.device
) -> int | str:
    """Return the peak of the second pass in bytes, when the gradients already exist."""
    policy = build_policy(sizes, dtype, device, checkpointing)
    bundle = random_bundle(tokens // 2, (tokens - tokens // 2 + 1,), sizes["vocab_size"])
    batch = TokenBatch.from_samples(bundle, device)

    def once() -> None:
        logprobs_BT, _ = response_logprobs(policy, batch, 1.0)
        logprobs_BT.sum().backward()

    if is_out_of_memory(once, device):
        return "out of memory"
    with peak_memory(device) as peak:
        once()
    return "unknown" if peak.above is None else peak.above


# --- The count.


def count_peak(sizes: Mapping[str, Any], dtype: torch.dtype, tokens: int, checkpointing: bool) -> int:
    """Return the most bytes that exist at a time in forward and backward of one sequence whose second half is a
    response, above the weights and their gradients."""
    AttentionInterface.register(COUNTED, _counted_attention)
    AttentionMaskInterface.register(COUNTED, lambda *_, **__: None)
    config = model_config(sizes)
    config._attn_implementation = COUNTED
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(dtype).train()
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        ids = torch.zeros(1, tokens, dtype=torch.long)
        mask = torch.zeros(1, 1, 1, 1, dtype=torch.long)  # four dimensions are handed on as they are
        response = torch.zeros(tokens - tokens // 2, dtype=torch.long)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    head = TokenLogprobs(model.lm_head)
    with _LiveBytes() as live:
        hidden_1LD = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        logprobs_N, _ = head(hidden_1LD[0, tokens // 2 :], response, 1.0)
        del hidden_1LD
        logprobs_N.sum().backward()
    peak: int = live.peak
    return peak


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that are allocated within the block and not released yet."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: Any = (), options: Mapping[str, Any] | None = None
    ) -> Any:
        given = {_identity(each) for each in tree_leaves((arguments, options)) if isinstance(each, Tensor)}
        if operator is torch.ops.aten.nonzero.default:  # meta tensors have no values: count all elements
            (tensor,) = arguments
            result: Any = tensor.new_empty(tensor.numel(), tensor.dim(), dtype=torch.long)
        else:
            result = operator(*arguments, **(options or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and _identity(each) not in given:
                self._follow(each.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def released(_: Any) -> None:
            del self._seen[key]
            self._now -= size

        self._seen[key] = weakref.ref(storage, released)
        self._now += size
        self.peak = max(self.peak, self._now)


def _identity(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _FusedAttention(torch.autograd.Function):
    """Keeps its inputs and its output, like a fused kernel."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])


def _counted_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    apply: Any = _FusedAttention.apply
    return apply(query, key, value).transpose(1, 2).contiguous(), None
