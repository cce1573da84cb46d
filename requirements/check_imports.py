"""Import everything that the engines of a platform import, and report all that fails, one line each.

    python -m requirements.check_imports {cpu,gpu} {sampling,training}

It runs after an installation. An installed package can fail to import although all versions fit, and then no engine
starts: vLLM, for example, imports every attention backend to choose one. A GPU is not needed, because a missing driver
is replaced by the stub and the GPU is simulated.

`sampling` is what a rollout worker imports, and `training` what a learner rank and the other processes import. They are
separate processes in a run too: vLLM changes torch. On CPU they also do work that would otherwise delay the first start
of an engine: vLLM inspects a model class, and DeepSpeed compiles its operator. Both results are cached in ~/.cache.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial

from requirements.simulated_gpu import DEVICES, ensure_driver, simulate

GPU_KERNELS = ("flashinfer", "cutlass", "cutlass.cute", "triton", "cuda.bindings.runtime", "tilelang")
"""The packages with kernels that vLLM's CUDA build imports by itself when it needs them."""
TRAINING = (
    "torch",
    "deepspeed",
    "ray",
    "datasets",
    "peft",
    "wandb",
    "transformers.models.llama.modeling_llama",
)

CPU_BACKENDS = ("CPU_", "AMX_")
NOT_FOR_CUDA = (*CPU_BACKENDS, "ROCM_", "XPU_")
"""The first parts of the names of attention backends for other hardware."""
EXEMPT = {
    "NO_ATTENTION": "vLLM 0.32 lists this backend, but does not contain its module",
    "CUTLASS_MLA": "it allocates memory on the device when it is imported; only Blackwell GPUs use it",
}
"""Attention backends that cannot be imported without a GPU, with the reason."""

Check = tuple[str, Callable[[], object]]


def importing(*modules: str) -> Iterator[Check]:
    """Yield a check for each module."""
    for module in modules:
        yield module, partial(importlib.import_module, module)


def attention_backends(platform: str) -> Iterator[Check]:
    """Yield a check for each attention backend of vLLM that is meant for the platform."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, MambaAttentionBackendEnum

    if platform == "cpu":
        members = [one for one in AttentionBackendEnum if one.name.startswith(CPU_BACKENDS)]
    else:
        members = [
            one
            for one in (*AttentionBackendEnum, *MambaAttentionBackendEnum)
            if one.value and one.name not in EXEMPT and not one.name.startswith(NOT_FOR_CUDA)
        ]
    for member in members:
        yield f"vLLM's attention backend {member.name}", member.get_class


def inspect_model_class() -> None:
    from vllm.model_executor.models.registry import ModelRegistry

    ModelRegistry.models["LlamaForCausalLM"].inspect_model_cls()


def compile_operator() -> None:
    from deepspeed.comm.torch import build_shm_op

    build_shm_op()


def sampling(platform: str) -> Iterator[Check]:
    """Yield the checks of a rollout worker."""
    if platform == "gpu":
        import torch

        if not torch.cuda.is_available():
            simulate(DEVICES["H100"], count=1)
        yield from importing(*GPU_KERNELS)
    yield "vllm", lambda: importlib.import_module("vllm").AsyncEngineArgs
    yield from attention_backends(platform)
    if platform == "cpu":
        yield "vLLM's inspection of a model", inspect_model_class


def training(platform: str) -> Iterator[Check]:
    """Yield the checks of the learner and of the processes without an engine."""
    yield from importing(*TRAINING)
    if platform == "cpu":
        yield "DeepSpeed's operator", compile_operator


def failures(checks: Iterator[Check]) -> list[str]:
    """Run all checks. Return a line for each that fails, whatever it raises."""
    lines = []
    for name, check in checks:
        try:
            check()
        except Exception as error:
            (first, *_) = str(error).splitlines() or [""]
            lines.append(f"{name}: {type(error).__name__}: {first}")
    return lines


def main(platform: str, part: str) -> int:
    if platform == "gpu":
        ensure_driver()
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
    failed = failures({"sampling": sampling, "training": training}[part](platform))
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("cpu", "gpu") or sys.argv[2] not in ("sampling", "training"):
        sys.exit("usage: python -m requirements.check_imports {cpu,gpu} {sampling,training}")
    sys.exit(main(sys.argv[1], sys.argv[2]))
