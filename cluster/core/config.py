"""Everything a run can be told, in one schema. Torch-free, Ray-free, quick to import.

Names carry units. Each field says what it is for, and the reference in `docs/` is generated from here. Limits that one
field can state for itself are stated here; what takes two fields, a file or a cluster is in `cluster/configuration/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Count = Annotated[int, Field(ge=1, strict=True)]
Seconds = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Room = Literal["rollout", "learner", "reward"]
OnNewWeights = Literal["continue", "finish", "restart"]


def _switch(value: Any) -> Any:
    """YAML reads the words `on` and `off` as true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, values are not coerced from other types."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelConfig(Section):
    """Which language model is trained, and how it is held."""

    source: str = "starter"
    """`starter` (a 1M-parameter model, built once), a Hugging Face directory, a hub id, a `.gguf` file, or
    `package:NAME/FILE` for a file inside an installed Python package."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of learner and sampler alike. In bfloat16 the two disagree by about 0.05 per log-probability."""
    max_context_tokens: Count = 1024
    """Prompt and response together."""
    cache_directory: Path = Path("~/.cache/hpo-trainer")
    """Where starter models and converted GGUF files are kept. `~` is expanded."""


class TaskConfig(Section):
    """What is asked and how an answer is judged."""

    name: str = "countdown"
    """`launch.py tasks` lists them, each with an example."""
    options: dict[str, Any] = {}
    """The task's own settings, checked by the task (`launch.py tasks` lists them)."""


class RolloutConfig(Section):
    """The vLLM workers that sample responses. They are scaled independently of the learner."""

    workers: Count = 2
    """At the start. `launch.py scale` changes it while the run goes on."""
    min_workers: Count = 1
    """When the number adapts itself (see `max_workers`)."""
    max_workers: Count | None = None
    """If given, the number adapts itself: one more while the learner waits long for samples, one less while it hardly
    waits at all."""
    prompts_per_step: Count = 32
    """Prompts (groups) that one batch is made of."""
    responses_per_prompt: Annotated[int, Field(ge=2, strict=True)] = 16
    """The group size G."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """The learner divides its logits by it too."""
    max_response_tokens: Count = 256
    """A response that reaches it is cut off."""
    max_staleness: Annotated[int, Field(ge=0, strict=True)] = 0
    """How many weight versions a sample may be behind when it is learned from. 0 is exactly on-policy."""
    oversampling: Annotated[float, Field(ge=1)] | None = None
    """Prompts in flight, as a multiple of prompts_per_step: from 1 to max_staleness + 1, which null is. With 1.25 and
    max_staleness 1 a batch is the first that are ready of a quarter more; the slow ones go on under the next weights
    and are first in the next batch, never given up."""
    on_new_weights: OnNewWeights = "continue"
    """What responses in flight do when a worker gets new weights: `continue` under them, `finish` under the old ones
    first (the worker waits for its slowest), or `restart` from their first token."""
    dynamic_sampling_limit: Annotated[int, Field(ge=2, strict=True)] | None = None
    """Groups whose responses are all right, or all wrong, teach nothing: with a limit they are dropped, and other
    prompts sampled in their place. The run stops where so many times prompts_per_step do not fill a batch. Null keeps
    them in the batch."""
    prompts_per_request: Count = 4
    """Prompts that travel to a worker in one call, or more where there are very many."""
    inflight_prompts_per_worker: Count = 64
    """Prompts that one engine works on at a time."""
    max_sequences: Count = 256
    """Responses that one engine decodes at a time."""
    tensor_parallel_size: Count = 1
    """GPUs that one engine is spread over."""
    cpus_per_worker: Annotated[float, Field(ge=0)] = 1.0
    """Reserved from Ray for each worker."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    """Reserved from Ray for each worker; 0 is on CPU."""
    threads_per_worker: Count = 1
    """OpenMP threads of one engine on CPU."""
    kv_cache_gib: Annotated[float, Field(gt=0)] = 1.0
    """Key-value cache of one engine on CPU."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Of each GPU's memory, on GPU."""
    start_timeout_s: Seconds = 600.0
    """Longest wait for a new worker: its process, the model, the first compilation."""
    request_timeout_s: Seconds = 600.0
    """Longest wait for all responses to a prompt."""
    response_timeout_s: Seconds | None = None
    """A response that takes longer is cut off where it is, as at max_response_tokens. Null lets each go on to its end.
    """
    silence_timeout_s: Seconds = 120.0
    """A worker whose engine answers nothing for so long is replaced. After half of it, it is sent no more prompts."""
    update_timeout_s: Seconds = 300.0
    """Longest wait until a worker has pulled a weight version."""
    weight_transport: Literal["pull", "broadcast"] = "pull"
    """How new weights come to the workers: `pull` through Ray's object store, each when it is ready, or `broadcast`
    from the learner's memory into all engines at once (NCCL between GPUs, gloo between CPUs); who cannot, pulls."""
    sleep_while_learning: Annotated[bool, Field(strict=True)] = False
    """Whether engines give their GPU's memory back while the learner learns, so that one GPU can do both in turn. Needs
    max_staleness 0; give each a part of the GPU (gpus_per_worker: 0.5, learner.gpus_per_rank: 0.5)."""
    max_consecutive_failures: Annotated[int, Field(ge=0, strict=True)] = 3
    """How often a worker is replaced that was lost before it had sampled anything; then its place is given up. One
    that has sampled something is always replaced."""


class ObjectiveConfig(Section):
    """The loss. Formulas, defaults and sources: `docs/objectives.md`. A setting that is null has its objective's
    default."""

    name: str = "a_hpo"
    """`dapo` is its loss; what else belongs to it is rollout.dynamic_sampling_limit and overlong_tokens."""
    alpha: Fraction = 1.0
    """`hpo` only: weight of negative advantages. 1 is token-mean aggregation, 0 learns from right answers alone."""
    alpha_min: Fraction = 0.1
    """`a_hpo` only: lower bound of the adaptive weight (our default; the paper's is not known)."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The ratio is clipped below 1 - clip_low. Not for `sapo`, which has no clip."""
    clip_high: Annotated[float, Field(gt=0)] | None = None
    """The ratio is clipped above 1 + clip_high. Not for `sapo`."""
    advantage_scaling: Literal["group", "batch", "none"] | None = None
    """By which standard deviation advantages are divided."""
    importance_cap: Annotated[float, Field(ge=1)] | None = None
    """Cap of the detached weight min(π_old / μ, cap) that corrects for stale or imprecise sampling; null turns it
    off."""
    importance_level: Literal["token", "sequence"] | None = None
    """Whether that weight is each token's own (as null is), or the product over its response."""
    kl_coefficient: Annotated[float, Field(ge=0)] | None = None
    """Multiplies the divergence from the model that the run started with. Null or 0: that model is not loaded again."""
    kl_estimator: Literal["k1", "k2", "k3"] | None = None
    """With d = log π_ref - log π: -d, d² / 2, or e^d - d - 1. Null is `k3`."""
    entropy_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Multiplies the policy's entropy at each response token, which is added to what is maximised."""
    mask_truncated: Annotated[bool, Field(strict=True)] = False
    """Whether responses that were cut off at rollout.max_response_tokens get no gradient. They still count in their
    group's mean and deviation."""
    overlong_tokens: Annotated[int, Field(ge=0, strict=True)] = 0
    """Soft over-long penalty: over the last so many tokens before rollout.max_response_tokens, what is learned from a
    response falls linearly by 1; its verdict stays. 0 turns it off."""


class LearnerConfig(Section):
    """The DeepSpeed ranks that train."""

    ranks: Count = 1
    """Processes that share the work; the loss is the same for any number."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What DeepSpeed spreads over the ranks: nothing (0), the optimizer's state (1), gradients too (2), or
    parameters too (3)."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What ZeRO keeps in host memory instead of the GPU's: the optimizer's state (ZeRO 2 and 3), or that and the
    parameters too (ZeRO 3)."""
    lora_rank: Count | None = None
    """Train low-rank adapters (LoRA) of this rank and leave the model's own weights as they are; null trains all."""
    lora_alpha: Annotated[float, Field(gt=0)] = 32.0
    """An adapter's product counts lora_alpha / lora_rank times."""
    lora_target_modules: tuple[str, ...] = ("all-linear",)
    """Names of the linear layers that get an adapter, as in `[q_proj, v_proj]`; `all-linear` is every one but the
    output layer."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-6
    """Of AdamW."""
    warmup_steps: Annotated[int, Field(ge=0, strict=True)] = 0
    """Optimizer steps over which the learning rate rises linearly from 0."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How it goes on after that, to 0 at the end of the run."""
    adam_beta1: Fraction = 0.9
    """Decay of the mean of gradients."""
    adam_beta2: Fraction = 0.999
    """Decay of the mean of their squares."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """As in AdamW, apart from the gradient."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Longer gradients are shortened to it, over all parameters together."""
    mini_batches: Count = 1
    """Parts, by prompts, that one batch is cut into; each is an optimizer step."""
    epochs_per_batch: Count = 1
    """How often each batch is learned from. The ratio's π_old stays the policy that the first epoch began with."""
    micro_batch_tokens: Count = 16384
    """Tokens (padding included) of one forward pass on one rank. A prompt that responses share counts once."""
    prefix_sharing: Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)] = "auto"
    """Whether the responses of a group share one computation of their prompt: `auto` where the model allows it and it
    costs less, `on` everywhere (refused for models that do not allow it), `off` nowhere. The loss is the same."""
    gradient_checkpointing: Annotated[bool, Field(strict=True)] = False
    """Whether to compute activations again in the backward pass, which saves memory and costs time."""
    measure_gradient_fraction: Annotated[bool, Field(strict=True)] = False
    """Whether to measure which share of the gradient right and wrong answers have, in the first optimizer step of each
    batch. It costs two more passes over that mini-batch."""
    max_logprob_gap: Annotated[float, Field(gt=0)] = 1.0
    """The run stops when sampler and learner disagree by more than this, in mean over a batch, on equal weights."""
    cpus_per_rank: Annotated[float, Field(ge=0)] = 1.0
    """Reserved from Ray for each rank."""
    gpus_per_rank: Annotated[float, Field(ge=0)] = 0.0
    """Reserved from Ray for each rank; 0 is on CPU."""
    threads_per_rank: Count = 1
    """OpenMP threads of one rank on CPU."""
    start_timeout_s: Seconds = 600.0
    """Longest wait until all ranks are up, the compilation of DeepSpeed operators included."""
    step_timeout_s: Seconds = 1800.0
    """Longest wait for the ranks to learn from one batch."""


class ShapingConfig(Section):
    """One more reward, added to the task's. What is right or wrong stays the task's business."""

    function: str
    """`module:function`, called with (problem, response), that returns a number. It runs where the verifier does."""
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0


class RewardConfig(Section):
    """The actors that score responses."""

    workers: Count = 1
    """Actors, each with processes of its own."""
    cpus_per_worker: Annotated[float, Field(ge=0)] = 0.5
    """Reserved from Ray for each actor."""
    processes_per_worker: Count = 4
    """Verifier processes of one actor. While a verdict hangs in one of them the others go on."""
    verifier_timeout_s: Seconds = 5.0
    """Longest time for one verdict, from when the response begins to be judged. Then the process is killed."""
    verifier_memory_mib: Annotated[int, Field(ge=64, strict=True)] = 1024
    """Of one verifier process, with all that it imports (40 MiB without any)."""
    max_error_fraction: Fraction = 0.2
    """The run stops when the verifier failed, or took too long, on more than this share of a batch's responses."""
    shaping: tuple[ShapingConfig, ...] = ()
    """Rewards to be added to the task's, weighted: docs/rewards.md."""
    truncated_is_incorrect: bool = True
    """Whether a response that was cut off at `rollout.max_response_tokens` is wrong, whatever it says. If not, nothing
    tells a model to come to an end after its answer, and responses grow to the limit."""
    timeout_s: Seconds = 300.0
    """Longest wait for the verdicts on one group, with what it waits for others."""


class EvaluationConfig(Section):
    """pass@1 on held-out prompts, sampled at the training temperature."""

    every_steps: Count = 50
    """It is also done before the first step and after the last."""
    prompts: Count = 128
    """How many of the held-out ones; always the same."""
    responses_per_prompt: Count = 4
    """More of them make pass@1 surer, and pass@k and maj@k possible."""


class CheckpointConfig(Section):
    """What a crashed run resumes from."""

    every_steps: Count = 50
    """Steps since the newest one are done again after a crash."""
    keep: Count = 2
    """The newest ones; older ones are deleted."""


class TrackingConfig(Section):
    """Where the run's numbers go. `metrics.jsonl` in the run directory is always written and is the truth."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto`: online when a key is configured, else offline in the run directory. It never prompts."""
    wandb_project: str = "hpo-trainer"
    """Where the run is found in W&B."""
    wandb_group: str | None = None
    """Runs of one group are shown together; `launch.py compare` sets it."""
    wandb_tags: tuple[str, ...] = ()
    """Words to find the run by."""
    wandb_checkpoints: Annotated[bool, Field(strict=True)] = False
    """Whether W&B gets every checkpoint too, as versions of one artifact. Each is copied into the run directory first.
    """
    transcripts_per_step: Annotated[int, Field(ge=0, strict=True)] = 4
    """Responses written out for a person to read."""


class ClusterConfig(Section):
    """Where Ray is, and how long it may take to give what is asked."""

    address: str | None = None
    """Of a running Ray cluster; null takes `RAY_ADDRESS`, or else starts Ray on this machine."""
    placement_timeout_s: Seconds = 300.0
    """Longest wait for the resources that are reserved."""
    node_labels: dict[Room, dict[str, str]] = {}
    """Which nodes may hold whose actors, by the labels that the nodes were started with:
    `{rollout: {pool: spot}, learner: {pool: reserved}}` for `ray start --labels pool=spot`. Those of a room that is not
    named may be anywhere."""


class RunConfig(Section):
    """One training run."""

    name: Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Names the run directory and the W&B run."""
    directory: Path = Path("runs")
    """Run directories are made in here."""
    seed: Annotated[int, Field(ge=0, strict=True)] = 0
    """Decides which prompts come when and, with `rollout.max_staleness` 0, what is sampled."""
    steps: Count = 100
    """Batches to train on."""
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    rollout: RolloutConfig = RolloutConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    learner: LearnerConfig = LearnerConfig()
    reward: RewardConfig = RewardConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def run_directory(self) -> Path:
        """Absolute, because Ray actors do not share the driver's working directory."""
        return (self.directory.expanduser() / self.name).absolute()

    @property
    def responses_per_step(self) -> int:
        """N of the method: responses in one optimizer batch."""
        return self.rollout.prompts_per_step * self.rollout.responses_per_prompt

    @property
    def optimizer_steps_per_batch(self) -> int:
        return self.learner.mini_batches * self.learner.epochs_per_batch
