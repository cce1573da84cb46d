"""A described machine stands in for this one: a run that fits has no problem, and one that does not names a remedy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.configuration.chosen_defaults import with_device_defaults
from cluster.configuration.devices import Devices, Gpu
from cluster.configuration.machine import Machine, parse_machine, this_machine
from cluster.configuration.memory import CUDA_GRAPHS, CUDA_PROCESS
from cluster.configuration.memory_checks import check_gpu_memory, learner_fits, learner_limit, with_learner
from cluster.configuration.model_shape import ModelShape
from cluster.configuration.preflight import preflight
from cluster.core.config import RunConfig
from tests.cluster.configuration.runs import run_config
from tests.shapes import CONFIGS

SHAPES = {name: ModelShape.from_config(known) for name, known in CONFIGS.items()}
SMALL, LARGE = SHAPES["Qwen2.5-1.5B-Instruct"], SHAPES["Qwen2.5-7B-Instruct"]
H100 = parse_machine("1xH100-80G")


@pytest.mark.parametrize(
    ("text", "nodes", "gpus", "name", "capability"),
    [
        ("1xH100-80G", 1, 1, "H100", (9, 0)),
        ("8xA100-40GB", 1, 8, "A100", (8, 0)),
        ("1xrtx4090-24GiB", 1, 1, "RTX4090", (8, 9)),
        ("2x8xH100-80G", 2, 8, "H100", (9, 0)),
        ("4xFuture-512g", 1, 4, "FUTURE", None),
    ],
)
def test_machines_are_described(
    text: str, nodes: int, gpus: int, name: str, capability: tuple[int, int] | None
) -> None:
    machine = parse_machine(text)
    assert (machine.nodes, machine.gpus, machine.gpu, machine.capability) == (nodes, gpus, name, capability)


@given(st.integers(1, 99), st.integers(1, 16), st.sampled_from(["H100", "A100", "T4"]), st.integers(1, 999))
def test_every_description_of_the_form_is_understood(nodes: int, gpus: int, name: str, gib: int) -> None:
    machine = parse_machine(f"{nodes}x{gpus}x{name}-{gib}G")
    assert (machine.nodes, machine.gpus, machine.gpu) == (nodes, gpus, name)
    assert machine.memory_gib <= gib


@pytest.mark.parametrize(
    "text",
    [
        *("", "H100", "1xH100", "H100-80G", "1xH100-80", "0xH100-80G", "1x0xH100-80G", "1x1x1xH100-80G"),
        *(
            "99999x8xH100-80G",
            "9999xH100-80G",
            "1xH100-99999G",
            f"1x{'H' * 99}-80G",
            "１xH100-80G",
            "1" * 9999,
        ),
    ],
)
def test_other_descriptions_are_answered_with_examples_in_one_short_line(text: str) -> None:
    """Among them are numbers for which the placement of actors would need all memory of this machine."""
    with pytest.raises(ValueError, match="2x8xH100-80G") as raised:
        parse_machine(text)
    assert len(str(raised.value)) < 250


def test_this_machine_is_its_smallest_visible_gpu() -> None:
    gpus = tuple(
        Gpu(index, f"GPU-{index}", "X", gib, gib, (9, index)) for index, gib in enumerate((80.0, 24.0, 40.0))
    )
    devices = Devices("580", (13, 0), gpus)
    assert this_machine(devices, None) == Machine(1, 3, "X", 24.0, (9, 0))
    assert this_machine(devices, "0") == Machine(1, 1, "X", 80.0, (9, 0))
    assert this_machine(devices, "") is None
    sliced = replace(gpus[0], sliced=True, slices=(replace(gpus[0], uuid="MIG-a", memory_gib=10.0),))
    divided = replace(devices, gpus=(sliced,))
    assert this_machine(divided, "MIG-a") == Machine(1, 1, "X", 10.0, (9, 0))
    assert this_machine(divided, None) is None, "the memory of a divided GPU is that of no process"
    assert this_machine(None, None) is None


def config(rollout: dict[str, Any] | None = None, **learner: Any) -> RunConfig:
    return run_config(
        Path(),
        model={"dtype": "bfloat16", "max_context_tokens": 4096},
        rollout={"gpus_per_worker": 1, "max_response_tokens": 1024} | (rollout or {}),
        learner={"gpus_per_rank": 1} | learner,
    )


shared = {"gpus_per_worker": 0.5, "sleep_while_learning": True, "gpu_memory_utilization": 0.6}


@pytest.mark.parametrize(
    ("shape", "run", "where"),
    [
        (SMALL, config(), []),
        (LARGE, config(), ["learner"]),
        (LARGE, config(lora_rank=16, gradient_checkpointing=True), []),
        (SMALL, config(shared, gpus_per_rank=0.5), []),
        (
            SMALL,
            config(shared | {"gpu_memory_utilization": 0.95}, gpus_per_rank=0.5),
            ["rollout.gpu_memory_utilization"],
        ),
        (LARGE, config({"gpu_memory_utilization": 0.2}, lora_rank=8), ["rollout.gpu_memory_utilization"]),
    ],
)
def test_what_does_not_fit_on_80_gb_is_one_problem(
    shape: ModelShape, run: RunConfig, where: list[str]
) -> None:
    run = with_learner(run, micro_batch_tokens=8192)
    problems = list(check_gpu_memory(run, shape, H100.memory_gib))
    assert [problem.where for problem in problems] == where
    assert all(problem.fix for problem in problems)


def test_a_sleeping_engine_keeps_its_context_and_graphs() -> None:
    """VLLM releases weights and caches when it sleeps."""
    run = config(shared, gpus_per_rank=0.5)
    alone = config(gpus_per_rank=1)
    kept = learner_limit(alone, 80) - learner_limit(run, 80)
    assert kept == pytest.approx(CUDA_PROCESS + CUDA_GRAPHS)


learners = st.fixed_dictionaries(
    {
        "ranks": st.sampled_from([1, 2, 8]),
        "zero_stage": st.integers(0, 3),
        "gradient_checkpointing": st.booleans(),
        "micro_batch_tokens": st.sampled_from([4096, 16384, 65536]),
    }
)


@given(learner=learners, name=st.sampled_from(list(SHAPES)), gib=st.sampled_from([16, 24, 40, 80, 141]))
def test_the_settings_that_are_named_make_the_rank_fit(learner: dict[str, Any], name: str, gib: int) -> None:
    run = config(**learner)
    found = [problem for problem in check_gpu_memory(run, SHAPES[name], gib) if problem.where == "learner"]
    assert bool(found) is not learner_fits(run, SHAPES[name], gib)
    for problem in found:
        if not problem.fix.startswith("set "):
            continue
        settings = problem.fix.removeprefix("set ").partition(" (")[0]
        changes = dict(part.removeprefix("learner.").split("=") for part in settings.split(", "))
        values = {key: value if key == "offload" else json.loads(value) for key, value in changes.items()}
        assert learner_fits(with_learner(run, **values), SHAPES[name], gib)


@given(
    given_settings=st.dictionaries(
        st.sampled_from(["gradient_checkpointing", "micro_batch_tokens"]), st.none()
    ),
    checkpointing=st.booleans(),
    tokens=st.sampled_from([512, 16384, 40000]),
    name=st.sampled_from([*SHAPES, ""]),
    gib=st.sampled_from([0, 16, 24, 80]),
    dtype=st.sampled_from(["", "float32", "bfloat16"]),
)
def test_what_the_user_sets_is_never_changed(
    given_settings: dict[str, None], checkpointing: bool, tokens: int, name: str, gib: int, dtype: str
) -> None:
    values = {"gradient_checkpointing": checkpointing, "micro_batch_tokens": tokens}
    explicit = {key: values[key] for key in given_settings}
    run = run_config(
        Path(),
        model={"dtype": dtype} if dtype else {},
        rollout={"gpus_per_worker": 1},
        learner={"gpus_per_rank": 1} | explicit,
    )
    machine = Machine(1, 2, "X", gib, None) if gib else None
    chosen, choices = with_device_defaults(run, SHAPES.get(name), machine)
    assert {key: getattr(chosen.learner, key) for key in explicit} == explicit
    assert chosen.model.dtype == (dtype or "bfloat16")
    changed = {choice.setting for choice in choices}
    assert not changed & {f"learner.{key}" for key in explicit}
    assert ("model.dtype" in changed) == (not dtype)
    restored = chosen.model_copy(update={"model": run.model, "learner": run.learner})
    assert restored == run, "nothing else is changed"


def test_a_run_on_cpus_keeps_the_defaults() -> None:
    run = run_config(Path())
    assert with_device_defaults(run, SMALL, H100) == (run, ())


@pytest.mark.parametrize(
    ("name", "gib", "checkpointing"),
    [
        ("Qwen2.5-0.5B-Instruct", 80, False),
        ("Qwen2.5-1.5B-Instruct", 80, True),
        ("SmolLM2-135M", 24, False),
        ("SmolLM2-135M", 12, True),
    ],
)
def test_the_defaults_fit_where_anything_does(name: str, gib: int, checkpointing: bool) -> None:
    run = run_config(
        Path(),
        model={"max_context_tokens": 4096},
        rollout={"gpus_per_worker": 1, "prompts_per_step": 32},
        learner={"gpus_per_rank": 1},
    )
    shape, machine = SHAPES[name], Machine(1, 2, "X", gib, None)
    chosen, choices = with_device_defaults(run, shape, machine)
    assert learner_fits(chosen, shape, gib)
    assert chosen.learner.gradient_checkpointing is checkpointing
    assert str(choices[0]) == "model.dtype=bfloat16 (the default on GPUs)"


def test_old_gpus_get_float32() -> None:
    run = run_config(Path(), rollout={"gpus_per_worker": 1}, learner={"gpus_per_rank": 1})
    chosen, _ = with_device_defaults(run, SMALL, parse_machine("2xT4-16G"))
    assert chosen.model.dtype == "float32"
    explicit = with_device_defaults(run_config(Path(), model={"dtype": "bfloat16"}), SMALL, None)[0]
    assert explicit.model.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("machine", "sections", "where"),
    [
        ("2xH100-80G", {}, []),
        ("1xH100-80G", {}, ["--machine"]),
        ("2x1xH100-80G", {}, []),
        ("2xT4-16G", {}, ["model.dtype"]),
        ("2x2xH100-80G", {"rollout": {"gpus_per_worker": 4, "tensor_parallel_size": 4}}, ["--machine"]),
        ("8xH100-80G", {"rollout": {"gpus_per_worker": 4, "tensor_parallel_size": 4}}, []),
    ],
)
def test_a_configuration_is_checked_against_a_described_machine(
    tmp_path: Path, machine: str, sections: dict[str, Any], where: list[str]
) -> None:
    """The CPUs and GPUs of this machine do not count then. An engine over several GPUs is on one node."""
    values = {"rollout": {"gpus_per_worker": 1, "cpus_per_worker": 99}, "learner": {"gpus_per_rank": 1}}
    for name, change in sections.items():
        values[name] = values[name] | change
    run = run_config(tmp_path, model={"dtype": "bfloat16"}, **values)
    assert [problem.where for problem in preflight(run, machine=parse_machine(machine))] == where
