"""Estimate the memory of a run: of each learner rank, of each engine, and of shared memory. Pure and torch-free.

A learner rank always holds its state, and needs the largest of these phases beside it (on the CPU, where the memory of
activations stays with the process, the first phase and the largest of the others):

    state               weights, float32 copy, moments, accumulated gradients, reference, buffers for engines, process
    + backward          activations of one micro-batch, one layer's gradients, blocks of logits, bucket and its copy,
                        new gradients before they are added to the accumulated ones (on the CPU a phase of its own)
    + optimizer step    copies of the gradients that DeepSpeed makes, bucket
    + publication       the weights that ZeRO 3 gathers at a time
    + export            the whole model, which rank 0 copies into the host's memory (on GPUs it is counted there)

Sizes follow from the model's shape. The activations were counted on meta tensors, and the allocations of DeepSpeed's
engines on CPU (tests/cluster/configuration/test_memory.py, tests/learner/engine/test_counted_memory.py). The total of a
rank on the CPU was compared with real runs (benchmarks/memory_estimate.py). No GPU was available: what CUDA, NCCL and
vLLM reserve for themselves is taken from their sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from cluster.configuration.model_shape import ModelShape
from cluster.core.config import RunConfig
from cluster.core.weight_buckets import BUCKET_BYTES, GATHER_BYTES
from cluster.core.weight_transport import WEIGHT_TRANSPORTS
from learner.engine.deepspeed_engine import deepspeed_config

GIB = 2**30

LOGIT_BLOCK = 64 * 2**20
"""The size of one block of logits in bytes (learner/model/token_logprobs.py). Two such blocks exist at a time."""
SMALLEST_BLOCK_WORDS = 1024
"""The smallest number of words in a block of logits."""
LIVE_PARAMETERS = 1_000_000_000
"""The number of parameters that ZeRO 3 keeps gathered at a time: DeepSpeed's default of stage3_max_live_parameters."""
CUDA_PROCESS = 0.8 * GIB
"""The memory of a process with a CUDA context and its kernels, before any tensor."""
CUDA_GRAPHS = 1.0 * GIB
"""The memory of the CUDA graphs of an engine."""
CPU_LEARNER = 0.6 * GIB
"""The memory of a learner process on the CPU, before any tensor: torch, transformers, DeepSpeed and Ray."""
CPU_ENGINE = 2.5 * GIB
"""The memory of the three processes of an engine on the CPU, before any tensor."""
PREFILL_TOKENS = 8192
"""The smallest number of tokens that an engine is set up to prefill in one step (rollout/engine/vllm_args.py)."""
FRAGMENTS = 0.05
"""The fraction of a GPU's memory that the allocator loses in fragments."""


class Part(NamedTuple):
    """One use of memory, in bytes."""

    name: str
    size: float


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of one process, or of one node's shared memory, by use."""

    subject: str
    parts: tuple[Part, ...]

    @property
    def total(self) -> float:
        """The sum of all parts, in bytes."""
        return sum(part.size for part in self.parts)


def element_size(config: RunConfig) -> int:
    """Return the number of bytes of a weight."""
    return 2 if config.model.dtype == "bfloat16" else 4


def trained_parameters(config: RunConfig, shape: ModelShape) -> int:
    """Return the number of parameters that have a gradient."""
    rank = config.learner.lora_rank
    return shape.parameters if rank is None else shape.adapter_parameters(rank)


def learner_memory(config: RunConfig, shape: ModelShape) -> Memory:
    """Return the peak memory of one learner rank on its device, with the parts of the phase that needs most."""

    def size(parts: list[Part]) -> float:
        return sum(part.size for part in parts)

    backward, *others = _phases(config, shape)
    phase = max(backward, *others, key=size)
    if not config.learner.gpus_per_rank:
        # The C library keeps the memory of activations, and takes that of the other phases' buffers beside it.
        phase = [*backward, *max(others, key=size)]
    return Memory("learner rank", tuple(part for part in (*_state(config, shape), *phase) if part.size))


def learner_resident(config: RunConfig, shape: ModelShape) -> float:
    """Return the bytes that a learner rank keeps on its GPU while the engines sample."""
    stage, in_float32 = config.learner.zero_stage, element_size(config) == 4
    kept = {
        "weights",
        "float32 copy",
        "moments",
        "kept bucket",
        "reference model",
        "weight buffers",
        "process",
    }
    if stage == 3 or (stage == 1 and not in_float32):  # whose gradients have memory of their own
        kept.add("gradients")
    return sum(part.size for part in _state(config, shape) if part.name in kept)


def _state(config: RunConfig, shape: ModelShape) -> list[Part]:
    """Return the parts that exist throughout the training."""
    learner, width = config.learner, element_size(config)
    trained, ranks = trained_parameters(config, shape), learner.ranks
    frozen = shape.parameters - trained if learner.lora_rank is None else shape.parameters
    stage = learner.zero_stage
    on_device = _keeps_state(config)
    weights = width * (trained + frozen) / (ranks if stage == 3 else 1)
    if learner.offload == "parameters" and not on_device:
        weights = 0
    gathered = width * min(shape.parameters, LIVE_PARAMETERS) if stage == 3 and ranks > 1 else 0
    part = ranks if stage else 1
    has_copy = stage > 0 or width == 2
    # Without ZeRO the gradients have the weights' type. With it they are accumulated in float32, and in ZeRO 1 those of
    # bfloat16 weights exist in both types.
    by_stage: dict[int, float] = {
        0: width * trained,
        1: (4 if width == 4 else 6) * trained,
    }
    gradients = by_stage.get(stage, 4 * trained / ranks)
    reference = 0.0
    if _has_reference(config) and (on_device or learner.offload != "parameters"):
        reference = width * shape.parameters / (ranks if stage == 3 else 1)
    return [
        Part("weights", weights),
        Part("gathered weights", gathered),
        Part("float32 copy", 4 * trained / part if has_copy and on_device else 0),
        Part("moments", 8 * trained / part if on_device else 0),
        Part("gradients", gradients if on_device or stage < 2 else 0),
        Part("kept bucket", _bucket(config, trained) if stage == 3 else 0),
        Part("reference model", reference),
        Part("weight buffers", _shared_buffers(config, shape)),
        Part("process", CUDA_PROCESS if learner.gpus_per_rank else CPU_LEARNER),
    ]


def _has_reference(config: RunConfig) -> bool:
    """Return True if the objective compares the policy with a second model (learner/engine/reference_policy.py)."""
    return bool(config.objective.kl_coefficient) and config.learner.lora_rank is None


def _keeps_state(config: RunConfig) -> bool:
    """Return True if the optimizer's state is in the memory of the rank's device."""
    return config.learner.offload == "none" or config.learner.gpus_per_rank == 0


def _phases(config: RunConfig, shape: ModelShape) -> list[list[Part]]:
    """Return the parts that each phase needs beside the state."""
    learner, width = config.learner, element_size(config)
    stage, trained = learner.zero_stage, trained_parameters(config, shape)
    on_device = _keeps_state(config)
    bucket = 0 if _is_plain(config) or stage == 3 else _bucket(config, trained)
    backward = [
        Part("activations", activation_bytes(config, shape)),
        Part("output layer", output_layer_bytes(config, shape)),
    ]
    head = width * shape.head
    publication = max(GATHER_BYTES, head) if stage == 3 and shape.parameters > LIVE_PARAMETERS else 0
    if learner.gpus_per_rank == 0:  # the bucket is not touched while there are activations
        full = 0 if _is_plain(config) else width * min(_bucket_elements(config), trained)
        new = (4 if width == 4 else 6) * trained / learner.ranks if stage >= 2 else 0
        copies = _copies(config, trained) * (
            1 if _is_plain(config) else 2
        )  # the C library keeps freed memory
        end = [Part("new gradients", new), Part("bucket", max(full, bucket))]
        export = [Part("export", exported_bytes(config, shape))]
        return [backward, end, [Part("optimizer step", copies)], [Part("publication", publication)], export]
    # In bfloat16, and in ZeRO 3, each gradient is added to the accumulated ones at once.
    new = 4 * trained / learner.ranks if stage == 2 and width == 4 and on_device else 0
    backward += [
        Part("bucket", bucket),
        Part("copy of the bucket", _reduced(config, shape)),
        Part("new gradients", new),
    ]
    step = [Part("optimizer step", _copies(config, trained) if on_device else 0), Part("bucket", bucket)]
    return [backward, step, [Part("publication", publication)]]


def _copies(config: RunConfig, trained: int) -> float:
    """Return the bytes of the copies of the gradients that DeepSpeed makes in an optimizer step."""
    stage, in_float32 = config.learner.zero_stage, element_size(config) == 4
    if stage == 0:
        return (4 if in_float32 else 6) * trained
    return 0 if stage == 2 and not in_float32 else 4 * trained / config.learner.ranks


def _is_plain(config: RunConfig) -> bool:
    """Return True if there is no bucket: ZeRO 1 in bfloat16 is another optimizer of DeepSpeed."""
    stage = config.learner.zero_stage
    return stage == 0 or (stage == 1 and element_size(config) == 2)


def _reduced(config: RunConfig, shape: ModelShape) -> float:
    """Return the bytes of the float32 copies in which gradients travel: those of a bucket and, if it is larger, that of
    the output layer, whose gradient is the first one."""
    stage, trained = config.learner.zero_stage, trained_parameters(config, shape)
    if _is_plain(config) or (stage < 3 and element_size(config) == 4):
        return 0
    full = min(_bucket_elements(config), trained)
    head = 0 if shape.tied or config.learner.lora_rank or shape.head <= full else shape.head
    return 4 * (full + head if stage == 3 else max(full, head))


def _bucket(config: RunConfig, trained: int) -> float:
    """Return the bytes of DeepSpeed's bucket. On the CPU, pages that are not used take no memory."""
    elements = _bucket_elements(config)
    # That of ZeRO 3 has the type in which the gradients travel, which is always float32.
    width = 4 if config.learner.zero_stage == 3 else element_size(config)
    return width * (elements if config.learner.gpus_per_rank else min(elements, trained))


def _bucket_elements(config: RunConfig) -> int:
    return int(
        deepspeed_config(config.learner, config.model.dtype)["zero_optimization"]["reduce_bucket_size"]
    )


def computed_tokens(config: RunConfig) -> int:
    """Return the largest number of tokens in one micro-batch: a single response may exceed the limit."""
    context = config.model.max_context_tokens
    at_most = -(-config.max_responses_per_step // config.learner.ranks) * context
    return min(at_most, max(config.learner.micro_batch_tokens, context))


def activation_bytes(config: RunConfig, shape: ModelShape) -> float:
    """Return the bytes that a micro-batch keeps for its backward pass, and the gradients of one layer."""
    tokens, width = computed_tokens(config), element_size(config)
    one_layer = layer_activation_bytes(shape, width)
    if config.learner.lora_rank is not None:
        one_layer += 7 * config.learner.lora_rank * width
    if config.learner.gradient_checkpointing:
        kept = shape.layers * shape.hidden * width + one_layer
    else:
        kept = shape.layers * one_layer
    gradients = 3 * shape.intermediate * width + 16 * shape.hidden
    return tokens * (kept + gradients)


def layer_activation_bytes(shape: ModelShape, width: int) -> float:
    """Return the bytes that one layer keeps for backward for each token.

    A normalization computes in float32: 8 bytes per unit in bfloat16, 12 in float32. The feed-forward layer keeps four
    tensors (gate, its activation, up, their product), and attention five (query, key and value for each head, and the
    output twice, for prompts and responses).
    """
    norm = 8 if width == 2 else 12
    hidden = shape.norms * (norm * shape.hidden + 4)
    if shape.qk_norm:
        hidden += (6 if width == 2 else 8) * (shape.query_width + shape.key_width)
    return hidden + width * (4 * shape.intermediate + 5 * shape.query_width)


def output_layer_bytes(config: RunConfig, shape: ModelShape) -> float:
    """Return the bytes of the blocks of logits, of the response tokens' hidden states, and of their gradients."""
    tokens, width = computed_tokens(config), element_size(config)
    whole = 4 * tokens * shape.vocabulary
    block = whole if whole <= 2 * LOGIT_BLOCK else max(LOGIT_BLOCK, 4 * tokens * SMALLEST_BLOCK_WORDS)
    weight = 0 if config.learner.lora_rank else width * shape.head  # its gradient is computed whole
    return 2 * block + tokens * shape.hidden * (2 * width + 4) + weight


# --- Host memory of a learner on GPUs.

PINNED_WASTE = 1.15
"""The pinned memory of a copy of the weights, as a multiple of their size (learner/weights/pull.py)."""


def copied_bytes(config: RunConfig, shape: ModelShape) -> float:
    """Return the bytes of the copy of a version in the host's memory of rank 0. With the transport broadcast it exists
    from the first worker on that pulls."""
    return PINNED_WASTE * version_bytes(config, shape) if config.learner.gpus_per_rank else 0


def exported_bytes(config: RunConfig, shape: ModelShape) -> float:
    """Return the bytes of the whole model, with merged adapters, that rank 0 copies into the host's memory to write the
    final model."""
    return element_size(config) * shape.parameters


def offloaded_bytes(config: RunConfig, shape: ModelShape) -> float:
    """Return the bytes of a rank's state in host memory."""
    learner, trained = config.learner, trained_parameters(config, shape)
    if _keeps_state(config):
        return 0
    optimizer = 16 * trained / learner.ranks  # float32: weights, moments, gradients
    parameters = element_size(config) * shape.parameters / learner.ranks
    models = 2 if _has_reference(config) else 1
    return optimizer + (models * parameters if learner.offload == "parameters" else 0)


# --- Engines.


def engine_memory(config: RunConfig, shape: ModelShape) -> Memory:
    """Return the memory of one engine process on its device, without the key-value cache on GPUs."""
    rollout, width = config.rollout, element_size(config)
    size, on_gpu = rollout.tensor_parallel_size, rollout.gpus_per_worker > 0
    prefill = max(config.model.max_context_tokens, rollout.max_sequences, PREFILL_TOKENS)
    # Of a forward pass only one layer's tensors exist at a time. Logits are float32, twice.
    layer = width * (3 * shape.intermediate + 3 * shape.query_width) / size + 4 * width * shape.hidden
    logits = rollout.max_sequences * shape.vocabulary * (width + 8)
    parts = [
        Part("weights", width * shape.parameters / size),
        Part("activations", prefill * layer),
        Part("logits", logits),
        Part("new weights", width * max(shape.head, shape.layer_parameters) / size),
    ]
    if on_gpu:
        parts += [Part("CUDA graphs", CUDA_GRAPHS), Part("process", CUDA_PROCESS)]
    else:
        parts += [Part("key-value cache", rollout.kv_cache_gib * GIB), Part("processes", CPU_ENGINE)]
    return Memory("engine", tuple(parts))


def cache_bytes_per_token(config: RunConfig, shape: ModelShape) -> float:
    """Return the bytes of the key-value cache for one token, in one process of an engine."""
    heads = max(1, shape.kv_heads / config.rollout.tensor_parallel_size)
    return 2 * shape.layers * heads * shape.head_width * element_size(config)


def _shared_buffers(config: RunConfig, shape: ModelShape) -> float:
    """Return the bytes of the two buffers that engines on the same device map."""
    transport = WEIGHT_TRANSPORTS.get(config.rollout.weight_transport)
    if transport is None or not transport.shares_devices:
        return 0
    return 2 * min(BUCKET_BYTES, version_bytes(config, shape))


# --- Shared memory.


def version_bytes(config: RunConfig, shape: ModelShape) -> float:
    """Return the size of a published version: all weights, or the factors of the adapters in float32."""
    if config.learner.lora_rank is not None:
        return 4 * trained_parameters(config, shape)
    return element_size(config) * shape.parameters


def shared_memory(config: RunConfig, shape: ModelShape) -> Memory:
    """Return the use of /dev/shm on a node with the learner and engines.

    Ray's object store is there, and the files from which the engines of a node load a version. Both hold two versions
    for a moment. With `broadcast` and `ipc` they are only for workers that join late, which then pull one version.
    """
    transport = WEIGHT_TRANSPORTS.get(config.rollout.weight_transport)
    versions = 1 if transport is not None and transport.keeps_versions else 2
    size = versions * version_bytes(config, shape)
    return Memory("/dev/shm", (Part("object store", size), Part("weight files", size)))
