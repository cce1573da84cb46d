"""Former names of settings, metrics and outcomes, and the names that other trainers give to our settings.

A run directory of an earlier version can be read, because the readers of its files translate the names. Names in a
configuration that a user gives to a command are not translated: each former or foreign name is reported with the
setting to use instead. `docs/migration.md` is generated from the tables of this module.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SETTINGS = {
    "rollout.tensor_parallel": "rollout.tensor_parallel_size",
    "rollout.gpu_memory_share": "rollout.gpu_memory_utilization",
    "rollout.restarts_in_a_row": "rollout.max_consecutive_failures",
    "objective.kl_weight": "objective.kl_coefficient",
    "objective.entropy_weight": "objective.entropy_coefficient",
    "learner.learning_rate_schedule": "learner.lr_schedule",
    "learner.max_gradient_norm": "learner.max_grad_norm",
    "learner.measure_gradient_share": "learner.measure_gradient_fraction",
    "reward.max_error_share": "reward.max_error_fraction",
    "reward.cut_off_is_wrong": "reward.truncated_is_incorrect",
    "task.options.held_out_data": "task.options.eval_data",
    "task.options.held_out_data_split": "task.options.eval_data_split",
    "task.options.held_out_problems": "task.options.eval_problems",
    "task.options.held_out_puzzles": "task.options.eval_puzzles",
    "task.options.held_out_share": "task.options.eval_fraction",
    "task.options.right_from": "task.options.correct_from",
    "task.options.randomised_labels": "task.options.randomized_labels",
}
"""The present name of each renamed setting."""

METRICS = {
    "eval/stderr": "eval/pass_at_1_stderr",
    "eval/response_tokens_mean": "eval/response_length_mean",
    "eval/truncated_share": "eval/truncated_fraction",
    "eval/error_share": "eval/error_fraction",
    "reward/right_share": "reward/correct_fraction",
    "reward/zero_variance_share": "reward/zero_variance_fraction",
    "reward/dropped_share": "reward/dropped_fraction",
    "reward/error_share": "reward/error_fraction",
    "reward/timeout_share": "reward/limit_fraction",
    "reward/timeout_fraction": "reward/limit_fraction",
    "objective/positive_share": "objective/positive_fraction",
    "objective/negative_share": "objective/negative_fraction",
    "objective/push_positive": "objective/advantage_mass_positive",
    "objective/push_negative": "objective/advantage_mass_negative",
    "objective/gradient_norm": "objective/grad_norm",
    "objective/clip_share_low": "objective/clip_fraction_low",
    "objective/clip_share_high": "objective/clip_fraction_high",
    "objective/importance_capped_share": "objective/importance_capped_fraction",
    "objective/gradient_share_positive": "objective/gradient_fraction_positive",
    "lengths/mean": "response_length/mean",
    "lengths/std": "response_length/std",
    "lengths/min": "response_length/min",
    "lengths/max": "response_length/max",
    "lengths/right_mean": "response_length/correct_mean",
    "lengths/wrong_mean": "response_length/incorrect_mean",
    "lengths/truncated_share": "response_length/truncated_fraction",
    "logprob_gap/missing_share": "logprob_gap/missing_fraction",
}
"""The present key of each renamed metric."""

SPLITS = {"held_out": "eval"}
"""The present name of the renamed split of a task's problems."""

OUTCOMES = {"right": "correct", "wrong": "incorrect", "timeout": "limit"}
"""The present name of each renamed outcome of a verdict."""

DROP_REASONS = {"all right": "all correct", "all wrong": "all incorrect", "not judged": "no verdict"}
"""The present name of each renamed reason for which dynamic sampling drops a group."""

RECIPE = {"right_share": "correct_fraction", "repeat_share": "repeat_fraction"}
"""The present name of each renamed field of a starter model's recipe."""

FORMER_NAMES = {
    "Settings": SETTINGS,
    "Metrics": METRICS,
    "Splits of a task's problems": SPLITS,
    "Outcomes of verdicts": OUTCOMES,
    "Reasons for dropped groups": DROP_REASONS,
}
"""All names of earlier versions that a user may have written, by their kind."""

_TRANSCRIPT_KEYS = {"right": "correct", "judged": "valid"}


def current_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings of a run's `config.yaml` under their present names."""
    current: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        name = SETTINGS.get(path, path).rpartition(".")[2]
        current[name] = current_settings(value, f"{path}.") if isinstance(value, Mapping) else value
    return current


def current_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of `metrics.jsonl` under the present keys of its metrics."""
    current = {METRICS.get(key, key): value for key, value in row.items()}
    if "dropped" in current:
        current["dropped"] = current_reasons(current["dropped"])
    return current


def current_reasons(by_reason: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping from reasons for dropped groups, under the reasons' present names."""
    return {DROP_REASONS.get(reason, reason): value for reason, value in by_reason.items()}


def current_transcript(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of `transcripts/*.jsonl`, with the present names of its keys and outcomes."""
    current = {_TRANSCRIPT_KEYS.get(key, key): value for key, value in group.items()}
    current["responses"] = [
        {**response, "outcome": OUTCOMES.get(response["outcome"], response["outcome"])}
        for response in group["responses"]
    ]
    return current


def former_starter_key(key: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that identify a starter model, under their former names. The cache of built models hashes
    these, so that a model that an earlier version built is found."""
    recipe = {present: former for former, present in RECIPE.items()}
    options = {present.rpartition(".")[2]: former.rpartition(".")[2] for former, present in SETTINGS.items()}
    return {
        "recipe": {recipe.get(name, name): value for name, value in key["recipe"].items()},
        "task": {options.get(name, name): value for name, value in key["task"].items()},
    }


@dataclass(frozen=True, slots=True)
class ForeignName:
    """The name that another trainer gives to one of our settings."""

    system: str
    """The other trainer."""
    name: str
    """The dotted path of the setting there."""
    setting: str
    """The dotted path of our setting."""
    note: str = ""
    """The difference in meaning or unit, if there is one."""


_AUTOMATIC = "the micro-batches of a step are accumulated automatically"
_CONTEXT = "one limit for prompt and response together"
_MINI_BATCHES = "the number of optimizer steps that a batch is divided into, instead of their size"
_RESPONSES = "prompts_per_step × responses_per_prompt is the number of responses"
_TOKENS = "a number of tokens, instead of sequences"
_OBJECTIVE = "the objective sets the advantage, the aggregation and the clipping; see docs/objectives.md"
_DUAL_CLIP = "used by the objectives with dual_clip in their name"
_STEPS = "a number of optimizer steps, instead of a fraction of the run"
_BATCHES = "a number of batches, instead of passes over the data"
_PEAK = "a constant learning rate by default; see learner.lr_schedule"
_RANKS = "the number of processes, with learner.gpus_per_rank GPUs each"

_TRL = (
    ("adam_beta1", "learner.adam_beta1", ""),
    ("adam_beta2", "learner.adam_beta2", ""),
    ("beta", "objective.kl_coefficient", ""),
    ("bf16", "model.dtype", "bfloat16, for the learner and the workers alike"),
    ("dataset_name", "task.options.data", ""),
    ("dataset_train_split", "task.options.data_split", ""),
    ("dataset_test_split", "task.options.eval_data_split", ""),
    ("deepspeed", "learner.zero_stage", "there is no DeepSpeed file; see also learner.offload"),
    ("delta", "objective.dual_clip", _DUAL_CLIP),
    ("entropy_coef", "objective.entropy_coefficient", ""),
    ("epsilon", "objective.clip_low", ""),
    ("epsilon_high", "objective.clip_high", ""),
    ("eval_steps", "evaluation.every_steps", "counted in batches"),
    ("generation_batch_size", "rollout.prompts_per_step", f"counted in prompts: {_RESPONSES}"),
    ("gradient_accumulation_steps", "learner.micro_batch_tokens", f"{_AUTOMATIC}; it limits their tokens"),
    ("gradient_checkpointing", "learner.gradient_checkpointing", ""),
    ("importance_sampling_level", "objective.name", "gspo for sequence"),
    ("learning_rate", "learner.learning_rate", _PEAK),
    ("log_completions", "tracking.transcripts_per_step", "a number of responses"),
    ("lora_r", "learner.lora_rank", ""),
    ("lora_alpha", "learner.lora_alpha", ""),
    ("lora_target_modules", "learner.lora_target_modules", ""),
    ("loss_type", "objective.name", _OBJECTIVE),
    ("lr_scheduler_type", "learner.lr_schedule", ""),
    ("mask_truncated_completions", "objective.mask_truncated", ""),
    ("max_completion_length", "rollout.max_response_tokens", ""),
    ("max_grad_norm", "learner.max_grad_norm", ""),
    ("max_prompt_length", "model.max_context_tokens", _CONTEXT),
    (
        "max_steps",
        "steps",
        "counted in batches; a batch is learner.mini_batches × epochs_per_batch optimizer steps",
    ),
    ("model_name_or_path", "model.source", ""),
    ("num_completions_to_print", "tracking.transcripts_per_step", ""),
    ("num_generations", "rollout.responses_per_prompt", ""),
    ("num_generations_eval", "evaluation.responses_per_prompt", ""),
    ("num_iterations", "learner.epochs_per_batch", ""),
    ("num_train_epochs", "steps", _BATCHES),
    ("output_dir", "directory", "the run directory is directory/name"),
    ("per_device_train_batch_size", "learner.micro_batch_tokens", _TOKENS),
    ("report_to", "tracking.wandb", ""),
    ("reward_weights", "reward.shaping", "one weight for each reward that is added to the task's"),
    ("run_name", "name", ""),
    ("save_steps", "checkpoint.every_steps", "counted in batches"),
    ("save_total_limit", "checkpoint.keep", ""),
    ("scale_rewards", "objective.advantage_scaling", ""),
    ("steps_per_generation", "learner.mini_batches", ""),
    ("temperature", "rollout.temperature", ""),
    ("vllm_enable_sleep_mode", "rollout.sleep_while_learning", ""),
    ("vllm_gpu_memory_utilization", "rollout.gpu_memory_utilization", ""),
    ("vllm_importance_sampling_cap", "objective.importance_cap", ""),
    ("vllm_importance_sampling_clip_max", "objective.importance_cap", ""),
    ("vllm_importance_sampling_mode", "objective.importance_level", "weights are capped, not masked"),
    ("vllm_max_model_length", "model.max_context_tokens", ""),
    ("vllm_tensor_parallel_size", "rollout.tensor_parallel_size", ""),
    ("warmup_ratio", "learner.warmup_steps", _STEPS),
    ("warmup_steps", "learner.warmup_steps", ""),
    ("weight_decay", "learner.weight_decay", ""),
)
_ACTOR, _ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
_VERL = (
    ("data.train_files", "task.options.data", ""),
    ("data.val_files", "task.options.eval_data", ""),
    ("data.prompt_key", "task.options.prompt_field", ""),
    ("data.train_batch_size", "rollout.prompts_per_step", ""),
    ("data.max_prompt_length", "model.max_context_tokens", _CONTEXT),
    ("data.max_response_length", "rollout.max_response_tokens", ""),
    ("actor_rollout_ref.model.path", "model.source", ""),
    ("actor_rollout_ref.model.lora_rank", "learner.lora_rank", ""),
    ("actor_rollout_ref.model.lora_alpha", "learner.lora_alpha", ""),
    ("actor_rollout_ref.model.target_modules", "learner.lora_target_modules", ""),
    ("actor_rollout_ref.model.enable_gradient_checkpointing", "learner.gradient_checkpointing", ""),
    (f"{_ACTOR}.ppo_mini_batch_size", "learner.mini_batches", _MINI_BATCHES),
    (f"{_ACTOR}.ppo_micro_batch_size", "learner.micro_batch_tokens", _TOKENS),
    (f"{_ACTOR}.ppo_micro_batch_size_per_gpu", "learner.micro_batch_tokens", _TOKENS),
    (f"{_ACTOR}.ppo_max_token_len_per_gpu", "learner.micro_batch_tokens", ""),
    (f"{_ACTOR}.ppo_epochs", "learner.epochs_per_batch", ""),
    (f"{_ACTOR}.grad_clip", "learner.max_grad_norm", ""),
    (f"{_ACTOR}.clip_ratio", "objective.clip_low", "see also objective.clip_high"),
    (f"{_ACTOR}.clip_ratio_c", "objective.dual_clip", _DUAL_CLIP),
    (f"{_ACTOR}.clip_ratio_low", "objective.clip_low", ""),
    (f"{_ACTOR}.clip_ratio_high", "objective.clip_high", ""),
    (f"{_ACTOR}.entropy_coeff", "objective.entropy_coefficient", ""),
    (f"{_ACTOR}.use_kl_loss", "objective.kl_coefficient", "it is off while the coefficient is null or 0"),
    (f"{_ACTOR}.kl_loss_coef", "objective.kl_coefficient", ""),
    (f"{_ACTOR}.kl_loss_type", "objective.kl_estimator", "k1, k2 or k3 (low_var_kl is k3)"),
    (f"{_ACTOR}.loss_agg_mode", "objective.name", _OBJECTIVE),
    (f"{_ACTOR}.policy_loss.loss_mode", "objective.name", _OBJECTIVE),
    (f"{_ACTOR}.optim.lr", "learner.learning_rate", _PEAK),
    (f"{_ACTOR}.optim.lr_warmup_steps", "learner.warmup_steps", ""),
    (f"{_ACTOR}.optim.lr_warmup_steps_ratio", "learner.warmup_steps", _STEPS),
    (f"{_ACTOR}.optim.weight_decay", "learner.weight_decay", ""),
    (f"{_ACTOR}.fsdp_config.optimizer_offload", "learner.offload", "offload: optimizer"),
    (
        f"{_ACTOR}.fsdp_config.param_offload",
        "learner.offload",
        "offload: parameters, with learner.zero_stage: 3",
    ),
    (f"{_ROLLOUT}.n", "rollout.responses_per_prompt", ""),
    (f"{_ROLLOUT}.val_kwargs.n", "evaluation.responses_per_prompt", ""),
    (f"{_ROLLOUT}.tensor_model_parallel_size", "rollout.tensor_parallel_size", ""),
    (f"{_ROLLOUT}.max_num_seqs", "rollout.max_sequences", ""),
    (f"{_ROLLOUT}.max_model_len", "model.max_context_tokens", ""),
    (f"{_ROLLOUT}.response_length", "rollout.max_response_tokens", ""),
    (f"{_ROLLOUT}.free_cache_engine", "rollout.sleep_while_learning", ""),
    ("algorithm.adv_estimator", "objective.name", _OBJECTIVE),
    ("algorithm.norm_adv_by_std_in_grpo", "objective.advantage_scaling", "group for true, none for false"),
    ("algorithm.kl_ctrl.kl_coef", "objective.kl_coefficient", "a term of the loss, not of the reward"),
    ("algorithm.filter_groups.enable", "rollout.dynamic_sampling_limit", "null turns it off"),
    ("algorithm.filter_groups.max_num_gen_batches", "rollout.dynamic_sampling_limit", ""),
    ("reward_model.overlong_buffer.len", "objective.overlong_tokens", ""),
    ("reward_model.num_workers", "reward.workers", ""),
    ("custom_reward_function.path", "task.options.function", "module:function, with the task `python`"),
    ("trainer.total_epochs", "steps", _BATCHES),
    ("trainer.total_training_steps", "steps", ""),
    ("trainer.save_freq", "checkpoint.every_steps", ""),
    ("trainer.test_freq", "evaluation.every_steps", ""),
    ("trainer.max_actor_ckpt_to_keep", "checkpoint.keep", ""),
    ("trainer.n_gpus_per_node", "learner.ranks", _RANKS),
    ("trainer.nnodes", "learner.ranks", f"{_RANKS}; Ray chooses the nodes"),
    ("trainer.project_name", "tracking.wandb_project", ""),
    ("trainer.experiment_name", "name", ""),
    ("trainer.default_local_dir", "directory", "the run directory is directory/name"),
    ("trainer.logger", "tracking.wandb", ""),
    ("trainer.log_val_generations", "tracking.transcripts_per_step", ""),
)
_OPENRLHF = (
    ("pretrain", "model.source", ""),
    ("bf16", "model.dtype", "bfloat16, for the learner and the workers alike"),
    ("prompt_data", "task.options.data", ""),
    ("prompt_split", "task.options.data_split", ""),
    ("eval_dataset", "task.options.eval_data", ""),
    ("eval_split", "task.options.eval_data_split", ""),
    ("input_key", "task.options.prompt_field", ""),
    ("label_key", "task.options.answer_field", "of the task `math`"),
    ("remote_rm_url", "task.options.url", "with the task `http`"),
    ("prompt_max_len", "model.max_context_tokens", _CONTEXT),
    ("generate_max_len", "rollout.max_response_tokens", ""),
    ("rollout_batch_size", "rollout.prompts_per_step", "counted in prompts"),
    (
        "micro_rollout_batch_size",
        "rollout.max_sequences",
        "the responses that one engine decodes at the same time",
    ),
    ("vllm_generate_batch_size", "rollout.oversampling", "a multiple of rollout.prompts_per_step"),
    ("n_samples_per_prompt", "rollout.responses_per_prompt", ""),
    ("eval_n_samples_per_prompt", "evaluation.responses_per_prompt", ""),
    ("train_batch_size", "learner.mini_batches", _MINI_BATCHES),
    ("micro_train_batch_size", "learner.micro_batch_tokens", _TOKENS),
    ("train_max_tokens_per_gpu", "learner.micro_batch_tokens", ""),
    ("num_episodes", "steps", _BATCHES),
    ("max_epochs", "learner.epochs_per_batch", ""),
    (
        "advantage_estimator",
        "objective.name",
        f"grpo for group_norm, reinforce_pp for reinforce_baseline; {_OBJECTIVE}",
    ),
    ("policy_loss_type", "objective.name", _OBJECTIVE),
    ("no_advantage_std_norm", "objective.advantage_scaling", "none"),
    ("dual_clip", "objective.dual_clip", _DUAL_CLIP),
    ("eps_clip", "objective.clip_low", "see also objective.clip_high"),
    ("eps_clip_low_high", "objective.clip_low", "see also objective.clip_high"),
    ("init_kl_coef", "objective.kl_coefficient", "a term of the loss, not of the reward"),
    ("use_kl_loss", "objective.kl_coefficient", "it is off while the coefficient is null or 0"),
    ("kl_estimator", "objective.kl_estimator", ""),
    ("entropy_loss_coef", "objective.entropy_coefficient", ""),
    ("overlong_buffer_len", "objective.overlong_tokens", ""),
    ("dynamic_filtering", "rollout.dynamic_sampling_limit", "null turns it off"),
    ("temperature", "rollout.temperature", ""),
    ("actor_learning_rate", "learner.learning_rate", _PEAK),
    ("lr_scheduler", "learner.lr_schedule", ""),
    ("lr_warmup_ratio", "learner.warmup_steps", _STEPS),
    ("max_norm", "learner.max_grad_norm", ""),
    ("l2", "learner.weight_decay", ""),
    ("adam_betas", "learner.adam_beta1", "see also learner.adam_beta2"),
    ("adam_offload", "learner.offload", "offload: optimizer"),
    ("zero_stage", "learner.zero_stage", ""),
    ("gradient_checkpointing", "learner.gradient_checkpointing", ""),
    ("lora_rank", "learner.lora_rank", "null instead of 0 trains all weights"),
    ("lora_alpha", "learner.lora_alpha", ""),
    ("target_modules", "learner.lora_target_modules", ""),
    ("actor_num_nodes", "learner.ranks", f"{_RANKS}; Ray chooses the nodes"),
    ("actor_num_gpus_per_node", "learner.ranks", _RANKS),
    ("vllm_num_engines", "rollout.workers", ""),
    ("vllm_tensor_parallel_size", "rollout.tensor_parallel_size", ""),
    ("vllm_gpu_memory_utilization", "rollout.gpu_memory_utilization", ""),
    ("vllm_enable_sleep", "rollout.sleep_while_learning", ""),
    ("vllm_sync_backend", "rollout.weight_transport", "broadcast uses NCCL between GPUs"),
    ("async_train", "rollout.max_staleness", "above 0, sampling and training overlap"),
    ("async_queue_size", "rollout.max_staleness", "counted in weight versions"),
    ("eval_steps", "evaluation.every_steps", "counted in batches"),
    ("save_steps", "checkpoint.every_steps", "counted in batches"),
    ("max_ckpt_num", "checkpoint.keep", ""),
    ("ckpt_path", "directory", "checkpoints are in directory/name/checkpoints"),
    ("save_path", "directory", "the trained model is in directory/name/final_model"),
    ("use_wandb", "tracking.wandb", ""),
    ("wandb_project", "tracking.wandb_project", ""),
    ("wandb_group", "tracking.wandb_group", ""),
    ("wandb_run_name", "name", ""),
)

FOREIGN_NAMES = tuple(
    ForeignName(system, *entry)
    for system, entries in (("TRL", _TRL), ("verl", _VERL), ("OpenRLHF", _OPENRLHF))
    for entry in entries
)
"""The names of other trainers: TRL's GRPOConfig, verl's PPO trainer and OpenRLHF's `train_ppo_ray`."""

_GENERIC = ("n", "path", "len", "enable", "logger")
"""Last parts of verl's names that mean nothing without the part before them."""


def former_setting(path: str) -> str | None:
    """Return the present name of a setting, by its former path or the last part of it; None if it was not renamed."""
    if path in SETTINGS:
        return SETTINGS[path]
    leaf = path.rpartition(".")[2]
    return next((present for former, present in SETTINGS.items() if former.rpartition(".")[2] == leaf), None)


def foreign_names(path: str) -> list[ForeignName]:
    """Return the entries of the table that match the end of `path` best: several if they match equally well."""
    closeness = {entry: _common_end(path, entry.name) for entry in FOREIGN_NAMES}
    best = max(closeness.values())
    generic = path.rpartition(".")[2] in _GENERIC
    return [entry for entry, parts in closeness.items() if parts == best and parts > generic]


def _common_end(one: str, other: str) -> int:
    """Return the number of last parts that two dotted paths share."""
    pairs = zip(reversed(one.split(".")), reversed(other.split(".")), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
