"""Saving and loading the training state of a rank, and of its random number generators."""

from __future__ import annotations

import errno
import os
import pickle
import random
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from cluster.core.actor_options import LearnerOptions
from cluster.core.config import LearnerConfig, ObjectiveConfig
from learner.engine.deepspeed_engine import lr_factor
from learner.state.state_files import CheckpointError, CheckpointWriteError, record
from learner.state.training_state import (
    load_random_state,
    load_training_state,
    place_steps,
    save_random_state,
    save_training_state,
)
from tests.builders import tiny_llama

# --- The training state.


class Module(torch.nn.Module):
    """A stand-in for `Policy` in DeepSpeed's engine."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model


@dataclass
class Engine:
    """Saves and loads as DeepSpeed does without ZeRO, on one rank of several."""

    options: LearnerOptions
    global_rank: int = 0
    fails: Exception | None = None
    module: Any = field(default_factory=lambda: Module(tiny_llama()))

    def __post_init__(self) -> None:
        learner = self.options.learner
        betas = (learner.adam_beta1, learner.adam_beta2)
        self.optimizer = torch.optim.AdamW(
            self.module.model.parameters(), learner.learning_rate, betas, weight_decay=learner.weight_decay
        )
        self.optimizer.clip_grad = learner.max_grad_norm  # type: ignore[attr-defined]
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, partial(lr_factor, steps=self.options.steps, learner=learner)
        )

    def step(self, times: int) -> None:
        for _ in range(times):
            self.optimizer.step()
            self.lr_scheduler.step()

    @property
    def rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def save_checkpoint(self, directory: str, tag: str, save_latest: bool, **_: bool) -> None:
        if self.fails:
            raise self.fails
        (Path(directory) / tag).mkdir(parents=True)
        state = {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.lr_scheduler.state_dict(),
            "clip": self.optimizer.clip_grad,  # type: ignore[attr-defined]
        }
        torch.save(
            state, Path(directory) / tag / f"zero_pp_rank_{self.global_rank}_mp_rank_00_optim_states.pt"
        )

    def load_checkpoint(self, directory: str, tag: str, **_: bool) -> tuple[str, None]:
        (file,) = (Path(directory) / tag).iterdir()
        state = torch.load(file, weights_only=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["schedule"])
        self.optimizer.clip_grad = state["clip"]  # type: ignore[attr-defined]
        return directory, None


def options(dtype: str = "float32", **learner: Any) -> LearnerOptions:
    settings = {"learning_rate": 1e-3, "lr_schedule": "cosine", "zero_stage": 0} | learner
    return LearnerOptions("", dtype, 1.0, 0, LearnerConfig(**settings), ObjectiveConfig(), (), steps=20)


def save(engine: Engine, directory: Path) -> dict[Path, Any]:
    return save_training_state(cast(Any, engine), directory, engine.options)


def load(engine: Engine, directory: Path) -> None:
    load_training_state(cast(Any, engine), directory, engine.options, directory / "scratch")


def drawn() -> list[float]:
    return [random.random(), float(np.random.random()), float(torch.rand(1))]


def test_every_random_number_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    drawn()
    engine = Engine(options())
    save(engine, tmp_path / "state")
    expected = drawn()
    assert drawn() != expected
    load(Engine(options()), tmp_path / "state")
    assert drawn() == expected


def test_a_rank_that_is_new_goes_on_with_its_own_random_numbers(tmp_path: Path) -> None:
    save(Engine(options()), tmp_path / "state")
    (tmp_path / "state" / "random" / "rank_0.pt").unlink()
    torch.manual_seed(5)
    load(Engine(options()), tmp_path / "state")
    assert torch.initial_seed() == 5


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_seals_what_it_wrote(tmp_path: Path, rank: int) -> None:
    """A file of the other rank, which may still be writing it, is left alone."""
    directory = tmp_path / "state"
    (directory / "random").mkdir(parents=True)
    (directory / "random" / f"rank_{1 - rank}.pt").write_bytes(b"half of i")
    sealed = save(Engine(options(), global_rank=rank), directory)
    mine = {f"state/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt", f"random/rank_{rank}.pt"}
    if rank == 0:
        mine.add("description.json")
    assert {str(file.relative_to(directory)) for file in sealed} == mine
    assert all(record(file) == known for file, known in sealed.items())


def test_the_learning_rate_goes_on_exactly(tmp_path: Path) -> None:
    whole = Engine(options())
    whole.step(7)
    save(whole, tmp_path / "state")
    resumed = Engine(options())
    load(resumed, tmp_path / "state")
    for _ in range(5):
        assert resumed.rate == whole.rate
        whole.step(1), resumed.step(1)


def test_settings_that_changed_since_take_effect(tmp_path: Path) -> None:
    """A checkpoint holds the old ones too."""
    old = Engine(options())
    old.step(7)
    save(old, tmp_path / "state")
    changed = options(
        learning_rate=5e-3, adam_beta1=0.8, adam_beta2=0.95, weight_decay=0.1, max_grad_norm=0.3
    )
    resumed = Engine(changed)
    load(resumed, tmp_path / "state")
    (group,) = resumed.optimizer.param_groups
    assert group["betas"] == (0.8, 0.95)
    assert group["weight_decay"] == 0.1
    assert resumed.optimizer.clip_grad == 0.3  # type: ignore[attr-defined]
    for step in range(7, 12):
        assert resumed.rate == 5e-3 * lr_factor(step, 20, changed.learner)
        resumed.step(1)


def test_after_resizing_each_step_count_is_on_its_parameters_device() -> None:
    """A stand-in for a GPU: fused AdamW refuses a step count on the CPU, and all parameters are given the same one."""
    read = torch.tensor(7.0)
    parameters = [torch.nn.Parameter(torch.empty(3, device=device)) for device in ("meta", "cpu", "cpu")]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        optimizer.state[parameter] = {"step": read}
    place_steps(optimizer)
    steps = [optimizer.state[parameter]["step"] for parameter in parameters]
    assert [step.device for step in steps] == [parameter.device for parameter in parameters]
    steps[1] += 1
    assert [steps[1], steps[2], read] == [8, 7, 7]


FULL = OSError(errno.ENOSPC, "No space left on device")
TORCH_ON_A_FULL_DISK = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")


@pytest.mark.parametrize("error", [FULL, TORCH_ON_A_FULL_DISK])
def test_what_cannot_be_written_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(_: int) -> None:
        raise FULL

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointWriteError) as caught:
        save(Engine(options(), fails=error), tmp_path)
    assert str(caught.value) == f"{tmp_path}: No space left on device"


def test_a_lost_rank_is_not_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Connection closed by peer") as caught:
        save(Engine(options(), fails=RuntimeError("Connection closed by peer")), tmp_path)
    assert not isinstance(caught.value, CheckpointError)


def test_another_dtype_or_zero_stage_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    save(Engine(options()), tmp_path / "state")
    for other in (options(dtype="bfloat16"), options(zero_stage=3)):
        engine = Engine(other)
        before = engine.optimizer.state_dict()
        with pytest.raises(CheckpointError, match="cannot resume from this checkpoint"):
            load(engine, tmp_path / "state")
        assert engine.optimizer.state_dict() == before


def test_another_model_is_refused(tmp_path: Path) -> None:
    save(Engine(options()), tmp_path / "state")
    other = Engine(options(), module=Module(tiny_llama(vocabulary=40)))
    with pytest.raises(
        CheckpointError, match=r"embed_tokens\.weight is 32 × 16, and in this run's model it is 40"
    ):
        load(other, tmp_path / "state")


def test_a_description_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    save(Engine(options()), tmp_path / "state")
    (tmp_path / "state" / "description.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"description\.json cannot be read"):
        load(Engine(options()), tmp_path / "state")


# --- Random number generators.


def drawn_numbers() -> tuple[float, list[float], list[float]]:
    return random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()


def test_what_is_drawn_is_what_would_have_been_drawn(tmp_path: Path) -> None:
    save_random_state(tmp_path / "state")
    expected = drawn_numbers()
    drawn_numbers()
    load_random_state(tmp_path / "state")
    assert drawn_numbers() == expected


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harm",)


def test_code_in_the_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"python": Harmful()}, "state")
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        load_random_state(Path("state"))
    assert not Path("harm").exists()
