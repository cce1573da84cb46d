"""A published weight is a served weight: every weight transport, between a real learner and a real engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.core.actor import Actor
from cluster.core.weight_transport import WEIGHT_TRANSPORTS
from tests.integration.engines import Engines, actor
from tests.integration.publishing import check_low_rank_updates, check_whole_weights

pytestmark = pytest.mark.timeout(400)
CASES = [(True, "float32"), (True, "bfloat16"), (False, "float32"), (False, "bfloat16")]
IN_THE_SUITE = {
    ("pull", True, "float32"),
    ("broadcast", True, "float32"),
    ("ipc", True, "float32"),
}
"""The cases that the ordinary suite runs. The slow tests run all of them, for every transport of the table."""


def case(name: str, *details: Any, slow: bool) -> Any:
    return pytest.param(
        name, *details, marks=pytest.mark.slow if slow else (), id="-".join(map(str, (name, *details)))
    )


@pytest.fixture(scope="module")
def engine_process(local_ray: None) -> Actor[Engines]:
    return Actor(actor(Engines).remote())


@pytest.fixture
def worker(engine_process: Actor[Engines]) -> Iterator[Actor[Engines]]:
    yield engine_process
    ray.get(engine_process.call(Engines.stop))  # stopping it again does no harm


@pytest.mark.parametrize(
    ("name", "tied", "dtype"),
    [
        case(name, tied, dtype, slow=(name, tied, dtype) not in IN_THE_SUITE)
        for name in WEIGHT_TRANSPORTS
        for tied, dtype in CASES
    ],
)
async def test_published_weights_are_served(
    worker: Actor[Engines], tmp_path: Path, name: str, tied: bool, dtype: str
) -> None:
    await check_whole_weights(WEIGHT_TRANSPORTS[name], worker, tmp_path, tied=tied, dtype=dtype)


@pytest.mark.parametrize("name", [case(name, slow=name != "pull") for name in WEIGHT_TRANSPORTS])
async def test_adapters_travel_alone_and_are_served_merged(
    worker: Actor[Engines], tmp_path: Path, name: str
) -> None:
    await check_low_rank_updates(WEIGHT_TRANSPORTS[name], worker, tmp_path)
