"""The sections of a run's configuration: every setting with its type, default and meaning. Torch-free and Ray-free.

`docs/configuration.md` is generated from this module and `cluster/core/config.py`. A limit of one field is declared at
the field. Checks that need two fields, a file or a cluster are in `cluster/configuration/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from cluster.core.schema import (
    MAX_COUNT,
    MAX_NUMBER,
    ActorCount,
    Count,
    CountOrZero,
    Fraction,
    NotNegative,
    Number,
    Positive,
    RayAddress,
    Seconds,
    Section,
)

ActorRole = Literal["rollout", "learner", "reward"]
"""The groups of Ray actors. Each group is scaled and placed on its own."""
ACTOR_ROLES: tuple[ActorRole, ...] = get_args(ActorRole)
OnNewWeights = Literal["continue", "finish", "restart"]


def _switch(value: Any) -> Any:
    """Return the word that was written: YAML reads `on` and `off` as true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class ModelConfig(Section):
    """The language model that is trained."""

    source: str = "starter"
    """The initial model: `starter` (a small model, trained once for the task), a Hugging Face directory, a hub id, a
    `.gguf` file, or `package:NAME/FILE` for a file in an installed Python package."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The data type of the learner and of the rollout workers. The default on GPUs is bfloat16, in which their
    log-probabilities differ by about 0.05 per token. float32 is computed without TF32 on GPUs, except in vLLM's
    attention, and is several times slower there than bfloat16."""
    max_context_tokens: Count = 1024
    """The maximum length of a prompt and its response together, in tokens. The default is lower for a model that
    supports fewer."""
    cache_directory: Path = Path("~/.cache/hpo-trainer")
    """The directory of starter models and converted GGUF files. `~` is expanded."""


class TaskConfig(Section):
    """The task: its problems and the verification of responses."""

    name: str = "countdown"
    """The name of the task. `launch.py tasks` lists all tasks, each with an example."""
    options: dict[str, Any] = Field(default={})
    """The task's own options, validated by the task. docs/rewards.md and docs/telelogs.md describe them."""
    selection: Literal["uniform", "informative"] = "uniform"
    """The choice of training prompts: `uniform` (each exactly once per epoch, in random order), or `informative` (more
    often those that are solved sometimes, but not always; see docs/recipes.md)."""


class RolloutConfig(Section):
    """The vLLM workers that sample responses. Their number is independent of the number of learner ranks."""

    workers: ActorCount = 2
    """The number of workers at the start of the run. `launch.py scale` changes it during the run."""
    min_workers: ActorCount = 1
    """The lower limit of the number of workers when it is adjusted automatically (see `max_workers`)."""
    max_workers: ActorCount | None = None
    """The upper limit of the number of workers. If it is set, the number is adjusted automatically: one worker is
    added when the learner waits long for samples, and one is removed when the learner hardly waits. Null keeps the
    number fixed."""
    prompts_per_step: Count = 32
    """The number of prompts (groups) in one batch."""
    responses_per_prompt: Annotated[int, Field(ge=2, le=MAX_COUNT, strict=True)] = 16
    """The group size G: the number of responses that are sampled for each prompt."""
    adaptive_budget: Count | None = None
    """The largest number of responses in one batch, at least prompts_per_step × responses_per_prompt. Those beyond this
    product go, in rounds, to prompts whose responses so far are all incorrect, those with the largest chance of a first
    success first. A group stops when it has a correct response. Null gives all groups responses_per_prompt."""
    temperature: Positive = 1.0
    """The sampling temperature. The learner divides its logits by the same value."""
    max_response_tokens: Count = 256
    """The maximum length of a response, in tokens. A response that reaches it is truncated. The default is half of the
    context where the model supports no more than 256 tokens."""
    max_staleness: CountOrZero = 0
    """The maximum difference, in weight versions, between the weights that sampled a response and the weights that
    are trained on it. 0 is exactly on-policy."""
    oversampling: Annotated[float, Field(ge=1, le=MAX_NUMBER)] | None = None
    """The number of prompts in flight, as a multiple of prompts_per_step: from 1 to max_staleness + 1. Null is
    max_staleness + 1. With 1.25 and max_staleness 1, a quarter more prompts than one batch needs are in flight, and a
    batch consists of the prompts that finish first. The slow prompts continue under the next weights and come first
    in the next batch; none is discarded."""
    on_new_weights: OnNewWeights = "continue"
    """The treatment of unfinished responses when a worker receives new weights: `continue` them under the new
    weights, `finish` them under the old weights first (the worker waits for its slowest response), or `restart` them
    from their first token."""
    dynamic_sampling_limit: Annotated[int, Field(ge=2, le=MAX_COUNT, strict=True)] | None = None
    """The limit of dynamic sampling, as a multiple of prompts_per_step. Groups whose responses are all correct or all
    incorrect have zero reward variance (no gradient signal). With a limit, such groups are dropped and replaced by
    other prompts, all incorrect ones only when they get no more of `adaptive_budget`. The run stops if this many times
    prompts_per_step do not fill one batch. Null keeps all groups in the batch."""
    prompts_per_request: Count = 4
    """The number of prompts that are sent to a worker in one call. It is exceeded if a batch has very many prompts."""
    inflight_prompts_per_worker: Count = 64
    """The maximum number of prompts that one engine processes at the same time."""
    max_sequences: Count = 256
    """The maximum number of responses that one engine decodes at the same time."""
    tensor_parallel_size: Count = 1
    """The number of GPUs over which one engine is distributed."""
    cpus_per_worker: NotNegative = 1.0
    """The number of CPUs that Ray reserves for each worker. Fractions are allowed."""
    gpus_per_worker: NotNegative = 0.0
    """The number of GPUs that Ray reserves for each worker: 0 (the engine runs on the CPU), a fraction of one GPU, or
    tensor_parallel_size."""
    threads_per_worker: Count = 1
    """The number of OpenMP threads of one engine on the CPU."""
    kv_cache_gib: Positive = 1.0
    """The size of the key-value cache of one engine on the CPU, in GiB."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.85
    """The fraction of each GPU's memory that one engine uses."""
    start_timeout_s: Seconds = 600.0
    """The maximum time to start a worker, in seconds: its process, the model and the first compilation."""
    request_timeout_s: Seconds = 600.0
    """The maximum time for all responses to a prompt that one request asks for, in seconds: the first ones, or those of
    an extension (see `adaptive_budget`)."""
    response_timeout_s: Seconds | None = None
    """The maximum time for one response, in seconds. A response that takes longer is truncated, as at
    max_response_tokens. Null sets no limit."""
    silence_timeout_s: Seconds = 120.0
    """The maximum time without an answer from a worker's engine, in seconds. After it the worker is replaced; after
    half of it the worker gets no more prompts."""
    update_timeout_s: Seconds = 300.0
    """The maximum time for a worker to load a weight version, in seconds."""
    weight_transport: str = "pull"
    """The transport of new weights to the workers: `pull` (each worker pulls them from Ray's object store when it is
    ready), `broadcast` (from the learner's memory into all engines at once, by NCCL between GPUs and gloo between
    CPUs), or `ipc` (by CUDA IPC within a GPU that a learner rank and engines share; within one machine on the CPU). A
    worker that cannot receive a version in these two ways pulls it."""
    sleep_while_learning: Annotated[bool, Field(strict=True)] = False
    """Engines release their GPU memory during training, so that one GPU can sample and train in turn. Requires
    max_staleness 0 and a fraction of the GPU for each (gpus_per_worker: 0.5, learner.gpus_per_rank: 0.5; with several
    ranks 0.4 and 0.6)."""
    max_consecutive_failures: CountOrZero = 3
    """The number of times in a row that a worker is replaced after it failed before it produced a sample. Then its
    slot is given up. A worker that has produced a sample is always replaced."""


class ObjectiveConfig(Section):
    """The loss. Formulas, defaults and sources are in `docs/objectives.md`. A setting that is null takes the default of
    its objective."""

    name: str = "a_hpo"
    """The objective. `dapo` is the loss of DAPO; the rest of the method is rollout.dynamic_sampling_limit and
    overlong_tokens."""
    alpha: Fraction = 1.0
    """The weight of negative advantages; used by `hpo` and `hpo_dual_clip` alone. 1 is the token mean over all
    responses, 0 learns from correct responses alone."""
    alpha_min: Fraction = 0.1
    """The lower bound of the adaptive weight; used by `a_hpo` and `a_hpo_dual_clip` alone. The default is our own,
    because the paper's value is not known."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The ratio is clipped below 1 - clip_low. Not available for `sapo`, which does not clip."""
    clip_high: Positive | None = None
    """The ratio is clipped above 1 + clip_high. Not available for `sapo`."""
    dual_clip: Annotated[float, Field(gt=1, le=MAX_NUMBER)] | None = None
    """The largest ratio that counts for a negative advantage; used by the objectives with `dual_clip` in their name
    alone. Null is 3."""
    advantage_scaling: Literal["group", "batch", "whole_batch", "mean", "leave_one_out", "none"] | None = None
    """The divisor of the difference between a reward and the mean of its group: the standard deviation of the `group`,
    of the `batch` (without the groups that have no reward variance) or of the `whole_batch`; the `mean` of the group;
    1 - 1 / G (`leave_one_out`); or 1 (`none`)."""
    importance_cap: Annotated[float, Field(ge=1, le=MAX_NUMBER)] | None = None
    """The upper limit of the detached weight min(π_old / μ, cap), which corrects for stale or imprecise sampling.
    Null turns the correction off."""
    importance_level: Literal["token", "sequence"] | None = None
    """The level of that weight: one weight per `token`, or the product over the response (`sequence`). Null is
    `token`."""
    kl_coefficient: NotNegative | None = None
    """The coefficient of the KL divergence from the initial model. With null or 0 the initial model is not loaded a
    second time."""
    kl_estimator: Literal["k1", "k2", "k3"] | None = None
    """The estimator of the KL divergence. With d = log π_ref - log π it is -d (`k1`), d² / 2 (`k2`) or e^d - d - 1
    (`k3`). Null is `k3`."""
    entropy_coefficient: NotNegative = 0.0
    """The coefficient of the entropy bonus: the policy's entropy at each response token, times this coefficient, is
    added to what is maximized."""
    mask_truncated: Annotated[bool, Field(strict=True)] = False
    """Responses that were truncated at rollout.max_response_tokens get no gradient. They still count in the mean and
    the standard deviation of their group."""
    overlong_tokens: CountOrZero = 0
    """The length of the soft over-long penalty, in tokens. Over the last tokens before rollout.max_response_tokens,
    the training reward of a response falls linearly by 1; its verdict does not change. 0 turns the penalty off."""


class RescueConfig(Section):
    """Help for prompts whose responses are all incorrect. Each of the three methods is off by default; see
    docs/recipes.md."""

    prefix_fraction: Fraction = 0.0
    """The fraction of a group's responses that begin with a prefix of an earlier correct response to the same prompt,
    if the prompt was solved once and its last group was all incorrect. The prefix is context, and is not learned from.
    0 turns it off."""
    replay_max_age_steps: CountOrZero = 0
    """The maximum age of a replay, in steps. An earlier correct response to the same prompt that is no older is added
    to a group that is all incorrect, and is trained on with the log-probabilities of its sampler. Requires
    objective.importance_cap. 0 turns it off."""
    examples: CountOrZero = 0
    """The number of solved examples before the problem of a training prompt: other training problems, each with a
    solution of the task. 0 turns it off."""
    examples_fraction: Fraction = 0.5
    """The probability that a prompt has examples, at the first step."""
    examples_fade_steps: Count = 50
    """The number of steps in which this probability falls linearly to 0."""


class LearnerConfig(Section):
    """The DeepSpeed ranks that train the model."""

    ranks: ActorCount = 1
    """The number of processes that share the training. The loss does not depend on it."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """The ZeRO stage, that is the state that DeepSpeed partitions over the ranks: none (0), the optimizer's state
    (1), gradients as well (2), or parameters as well (3)."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """The state that ZeRO keeps in host memory instead of GPU memory: the `optimizer` state (ZeRO 2 and 3), or that
    and the `parameters` (ZeRO 3)."""
    lora_rank: Count | None = None
    """The rank of LoRA adapters. With adapters the model's own weights stay unchanged. Null trains all weights."""
    lora_alpha: Positive = 32.0
    """The scale of the adapters: the product of an adapter's matrices is multiplied by lora_alpha / lora_rank."""
    lora_target_modules: tuple[str, ...] = ("all-linear",)
    """The names of the linear layers that get an adapter, such as `[q_proj, v_proj]`. `all-linear` selects every
    linear layer except the output layer."""
    learning_rate: Positive = 1e-6
    """The peak learning rate of AdamW."""
    warmup_steps: CountOrZero = 0
    """The number of optimizer steps in which the learning rate rises linearly from 0."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """The learning rate after the warm-up: `constant`, or a `linear` or `cosine` decay that reaches 0 at the last
    step."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """The decay rate of the running mean of the gradients."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """The decay rate of the running mean of the squared gradients."""
    weight_decay: NotNegative = 0.0
    """The decoupled weight decay of AdamW."""
    max_grad_norm: Positive = 1.0
    """The maximum norm of the gradient over all parameters. Longer gradients are scaled down to it."""
    mini_batches: Count = 1
    """The number of parts, by prompts, into which a batch is divided. Each part is one optimizer step."""
    epochs_per_batch: Count = 1
    """The number of passes over each batch. The ratio's π_old remains the policy at the beginning of the first pass."""
    micro_batch_tokens: Count = 16384
    """The maximum number of tokens (padding included) in one forward pass of one rank. A prompt that several
    responses share counts once. On GPUs the default is lower if a rank needs it to fit into memory."""
    prefix_sharing: Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)] = "auto"
    """One computation of the prompt for all responses of a group: `auto` (where the model supports it and it costs
    less), `on` (always; an error if the model does not support it) or `off`. The loss is the same."""
    gradient_checkpointing: Annotated[bool, Field(strict=True)] = False
    """Activations are recomputed in the backward pass, which saves memory and costs time. On GPUs the default is true
    if a rank does not fit into memory otherwise, or if the memory is not known."""
    measure_gradient_fraction: Annotated[bool, Field(strict=True)] = False
    """Measure the fractions of the gradient that come from positive and from negative advantages, in the first
    optimizer step of each batch. This costs two more passes over that mini-batch."""
    max_logprob_gap: Positive | None = None
    """The limit of the mean difference between the sampler's and the learner's log-probabilities at equal weights. A
    run stops if a batch exceeds it. A worker is replaced if the probe after an update exceeds it, or a token of the
    probe ten times this limit. Null is 0.15 for bfloat16 and 0.002 for float32, or 0.005 with engines on GPUs."""
    cpus_per_rank: NotNegative = 1.0
    """The number of CPUs that Ray reserves for each rank. Fractions are allowed."""
    gpus_per_rank: NotNegative = 0.0
    """The number of GPUs that Ray reserves for each rank: 0 (the rank trains on the CPU), 1, or a fraction, so that the
    rank shares its GPU with engines. With several ranks, the fraction must be above 0.5, so that no two of them share a
    GPU."""
    threads_per_rank: Count = 1
    """The number of OpenMP threads of one rank on the CPU. A rank on a GPU, whose optimizer may be offloaded, uses at
    least cpus_per_rank."""
    start_timeout_s: Seconds = 600.0
    """The maximum time to start all ranks, in seconds, including the compilation of DeepSpeed operators."""
    step_timeout_s: Seconds = 1800.0
    """The maximum time for the ranks to train on one batch, in seconds."""


class ShapingConfig(Section):
    """A shaping reward that is added to the task's reward. It does not change which responses are correct."""

    function: str
    """The reward function, as `module:function`. It is called with (problem, response) and returns a number. It runs
    in the processes of the verifier."""
    weight: Number = 1.0
    """The factor by which the function's value is multiplied."""


class RewardConfig(Section):
    """The actors that score responses."""

    workers: ActorCount = 1
    """The number of actors. Each has verifier processes of its own."""
    cpus_per_worker: NotNegative = 0.5
    """The number of CPUs that Ray reserves for each actor. Fractions are allowed."""
    processes_per_worker: ActorCount = 4
    """The number of verifier processes of one actor. If a verdict hangs in one process, the other processes
    continue."""
    verifier_timeout_s: Seconds = 5.0
    """The maximum time for one verdict, in seconds, from the start of the verification. After it the process is
    killed."""
    verifier_memory_mib: Annotated[int, Field(ge=64, le=MAX_COUNT, strict=True)] = 1024
    """The memory limit of one verifier process and the programs that it starts, in MiB, including imports (40 MiB
    without any) and shared memory."""
    max_error_fraction: Fraction = 0.2
    """The maximum fraction of a batch's responses on which the verifier may fail or time out. The run stops when it
    is exceeded."""
    shaping: tuple[ShapingConfig, ...] = ()
    """Shaping rewards that are added to the task's reward, with weights; see docs/rewards.md."""
    truncated_is_incorrect: bool = True
    """A response that was truncated at `rollout.max_response_tokens` counts as incorrect, whatever it contains. If
    this is false, the model has no incentive to stop after its answer, and responses grow to the limit."""
    timeout_s: Seconds = 300.0
    """The maximum time for which a reward actor with responses to score may deliver no verdict, in seconds, beyond
    the time that one response may take (verifier_timeout_s, or the time limits of a service). It does not depend on
    the number of responses that wait. After it the run stops."""


class EvaluationConfig(Section):
    """The evaluation: pass@1 on prompts of the eval split, sampled at the training temperature."""

    every_steps: Count = 50
    """The number of steps between two evaluations. The initial and the final model are always evaluated."""
    prompts: Count = 128
    """The number of prompts of the eval split. Every evaluation uses the same ones."""
    responses_per_prompt: Count = 4
    """The number of responses per prompt. More responses reduce the standard error of pass@1 and enable pass@k and
    maj@k."""


class CheckpointConfig(Section):
    """The checkpoints from which a crashed run resumes."""

    every_steps: Count = 50
    """The number of steps between two checkpoints. The steps after the newest checkpoint are repeated after a crash."""
    keep: Count = 2
    """The number of checkpoints that are kept. Older checkpoints are deleted."""


class TrackingConfig(Section):
    """The records of the run. `metrics.jsonl` in the run directory is always written and is the complete record."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """The mode of W&B. `auto` is online if an API key is configured, and otherwise offline in the run directory. It
    never prompts."""
    wandb_project: str = "hpo-trainer"
    """The W&B project of the run."""
    wandb_group: str | None = None
    """The W&B group of the run. Runs of one group are shown together; `launch.py compare` sets it."""
    wandb_tags: tuple[str, ...] = ()
    """The W&B tags of the run."""
    wandb_checkpoints: Annotated[bool, Field(strict=True)] = False
    """Every checkpoint is also uploaded to W&B, as a version of one artifact. It is first copied into the run
    directory."""
    transcripts_per_step: CountOrZero = 4
    """The number of responses per step that are written as a readable transcript."""


class ClusterConfig(Section):
    """The Ray cluster and the time to wait for its resources."""

    address: RayAddress | None = None
    """The address of a running Ray cluster. Null uses `RAY_ADDRESS`, or else starts Ray on this machine."""
    placement_timeout_s: Seconds = 300.0
    """The maximum time to wait for the reserved resources, in seconds."""
    node_labels: dict[ActorRole, dict[str, str]] = Field(default={})
    """The labels of the nodes that may run the actors of each role: `{rollout: {pool: spot}, learner: {pool:
    reserved}}` for nodes that were started with `ray start --labels pool=spot`. The actors of a role that is not
    listed may run on any node."""
