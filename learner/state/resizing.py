"""A training state that another number of ranks wrote: cut up anew through DeepSpeed's universal checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from learner.state.state_files import CheckpointWriteError, why_not_written

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def load_resized(engine: DeepSpeedEngine, state: Path, scratch: Path) -> None:
    """Load the ZeRO state in directory `state`, whatever the number of ranks that wrote it. A collective.

    Rank 0 puts it together, parameter by parameter, in `scratch`; each rank takes its part from there. The state itself
    is not touched.

    Raises:
        CheckpointWriteError: it cannot be written anew. The other ranks then wait for rank 0 in a collective.
    """
    from deepspeed import comm

    if comm.get_rank() == 0:
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            _convert(state, scratch / state.name)
        except (OSError, RuntimeError) as error:  # torch.save says RuntimeError on a full disk
            why = why_not_written(error, scratch)
            shutil.rmtree(scratch, ignore_errors=True)
            if why is None:
                raise
            raise CheckpointWriteError(
                f"{scratch}: {why}, while {state} was cut up for other ranks, which takes as much room again"
            ) from error
    comm.barrier()
    # DeepSpeed asks its configuration, and only when it loads. An engine that was built for it would read nothing else.
    engine._config.load_universal_checkpoint = True
    try:
        engine.load_checkpoint(str(scratch), tag=state.name)
    finally:
        engine._config.load_universal_checkpoint = False
    comm.barrier()
    if comm.get_rank() == 0:
        shutil.rmtree(scratch)


def _convert(state: Path, universal: Path) -> None:
    from deepspeed.checkpoint.ds_to_universal import main as ds_to_universal

    universal.mkdir(parents=True)
    ds_to_universal(
        SimpleNamespace(
            input_folder=str(state),
            output_folder=str(universal),
            num_extract_workers=1,  # in this process: forking one with threads and sockets is asking for trouble
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,  # of tensor parallelism, of which there is none
        )
    )
