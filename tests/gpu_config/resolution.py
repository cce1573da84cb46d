"""Let vLLM resolve the engine's arguments, in a Ray actor that is placed as a rollout worker is.

Ray is told of GPUs that do not exist, and the actor simulates their kind for vLLM.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from cluster.core.actor import Actor
from cluster.core.actor_options import EngineOptions
from cluster.run_state.run_directory import RunDirectory
from cluster.runtime.actor_logs import SETUP_HOOK
from cluster.training.actors import RayWorkerFactory
from requirements.simulated_gpu import DEVICES, simulate, stub_environment
from rollout.engine.vllm_args import vllm_arguments
from rollout.engine.worker import RolloutWorker
from tests import PROJECT
from tests.gpu_config.cases import Case, case_options, run_config

OBJECT_STORE_BYTES = 200 * 2**20


@dataclass(frozen=True, slots=True)
class Resolved:
    """The parts of vLLM's configuration that decide which code an engine runs."""

    visible_gpus: str
    """CUDA_VISIBLE_DEVICES of the actor."""
    executor: str
    worker: str
    model_runner: str
    scheduler: str
    chunked_prefill: bool
    prefix_caching: bool
    max_num_batched_tokens: int
    attention: str
    flash_attention: int | None
    """The generation of FlashAttention's kernels, if that is the attention backend."""
    compilation: str
    cuda_graphs: str
    cuda_graph_support: str
    """The batches for which the attention backend supports CUDA graphs."""
    largest_cuda_graph: int
    """The largest captured batch, in tokens."""
    sleep_mode: bool
    custom_all_reduce: bool


class ResolvingWorker(RolloutWorker):
    """A rollout worker that resolves configurations and starts no engine."""

    async def resolve(self, device: str, options: Sequence[EngineOptions]) -> list[Resolved]:
        """Return what vLLM makes of each engine's arguments on GPUs of the kind `device`."""
        simulate(DEVICES[device])
        return [resolve(vllm_arguments(one)) for one in options]

    async def executor_without_argument(self, options: EngineOptions) -> str:
        """Return the executor that vLLM chooses by itself. `resolve` must be called before."""
        arguments = vllm_arguments(options)
        del arguments["distributed_executor_backend"]
        return resolve(arguments).executor


def resolve(arguments: dict[str, Any]) -> Resolved:
    """Return what vLLM makes of an engine's arguments in this process, as `AsyncLLM` would resolve them."""
    from vllm import AsyncEngineArgs
    from vllm.config import set_current_vllm_config
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.attention.backends.fa_utils import get_flash_attn_version
    from vllm.v1.attention.selector import get_attn_backend
    from vllm.v1.executor.abstract import Executor

    config = AsyncEngineArgs(**arguments).create_engine_config(UsageContext.ENGINE_CONTEXT)
    model, cache, scheduler = config.model_config, config.cache_config, config.scheduler_config
    with set_current_vllm_config(config):
        backend = get_attn_backend(model.get_head_size(), model.dtype, cache.cache_dtype)
        uses_flash_attention = backend.get_name() == "FLASH_ATTN"
        flash_attention = (
            get_flash_attn_version(head_size=model.get_head_size()) if uses_flash_attention else None
        )
    compilation = config.compilation_config
    return Resolved(
        visible_gpus=os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        executor=Executor.get_class(config).__name__,
        worker=config.parallel_config.worker_cls,
        model_runner="V2" if config.use_v2_model_runner else "V1",
        scheduler=scheduler.get_scheduler_cls().__name__,
        chunked_prefill=scheduler.enable_chunked_prefill,
        prefix_caching=cache.enable_prefix_caching,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        attention=backend.get_name(),
        flash_attention=flash_attention,
        compilation=compilation.mode.name,
        cuda_graphs=compilation.cudagraph_mode.name,
        cuda_graph_support=backend.get_builder_cls()._cudagraph_support.name,
        largest_cuda_graph=compilation.max_cudagraph_capture_size,
        sleep_mode=model.enable_sleep_mode,
        custom_all_reduce=not config.parallel_config.disable_custom_all_reduce,
    )


@contextmanager
def ray_with_simulated_gpus(gpus: int, stub: Path) -> Iterator[None]:
    """Start Ray on this machine with GPUs that do not exist. Its processes load the stub driver."""
    environment = stub_environment(stub) | {"PYTHONPATH": str(PROJECT)}
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=gpus,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=OBJECT_STORE_BYTES,
        runtime_env={"worker_process_setup_hook": SETUP_HOOK, "env_vars": environment},
    )
    try:
        yield
    finally:
        ray.shutdown()


@asynccontextmanager
async def placed_worker(case: Case, model: Path, directory: Path) -> AsyncIterator[Actor[ResolvingWorker]]:
    """Place a worker as a run with the settings of the case places its rollout workers."""
    run_directory = RunDirectory(directory)
    factory = RayWorkerFactory(run_config(case), case_options(case, model), run_directory, ResolvingWorker)
    async with factory.worker("rollout-0") as worker:
        yield worker  # type: ignore[misc]


def write_model(directory: Path) -> Path:
    """Write the configuration of a model in the shape of Qwen2.5-1.5B, without weights, and return its directory."""
    from transformers import Qwen2Config

    Qwen2Config(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
        architectures=["Qwen2ForCausalLM"],
        max_position_embeddings=32768,
    ).save_pretrained(directory)
    return directory
