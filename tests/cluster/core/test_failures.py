"""The messages that are shown for errors."""

from __future__ import annotations

import pytest

from cluster.core.failures import trimmed

REMOTE = """\
\x1b[36mray::LearnerRank.learn()\x1b[39m (pid=123, ip=10.0.0.1, actor_id=ab, repr=<LearnerRank object>)
  File "/usr/lib/python3.11/concurrent/futures/_base.py", line 449, in result
    return self.__get_result()
  File "/venv/lib/python3.11/site-packages/ray/util/tracing.py", line 3, in _resume_span
    return method(self, *args)
  File "/home/me/hpo/learner/engine/rank.py", line 88, in learn
    loss = self._step(batch)
  File "/home/me/hpo/learner/engine/update.py", line 41, in _step
    raise ValueError("two lines")
  File "/venv/lib/python3.11/site-packages/torch/nn/module.py", line 9, in forward
    return a @ b
           ^^^^^
RuntimeError: mat1 and mat2 shapes cannot be multiplied
(3x4 and 5x6)"""


def test_a_remote_traceback_is_reduced_to_message_actor_and_our_frames() -> None:
    assert trimmed(RuntimeError(REMOTE)).splitlines() == [
        "RuntimeError: mat1 and mat2 shapes cannot be multiplied",
        "(3x4 and 5x6) (in LearnerRank.learn)",
        "  at /home/me/hpo/learner/engine/rank.py:88, in learn",
        "  at /home/me/hpo/learner/engine/update.py:41, in _step",
    ]


def test_a_plain_error_keeps_its_message() -> None:
    assert trimmed(ValueError("no space for it")) == "no space for it"
    assert trimmed(TimeoutError()) == "TimeoutError"


def test_a_long_error_is_cut() -> None:
    assert trimmed(ValueError("\n".join("abcdefghijklmnopqrst"))).splitlines()[-1] == "[8 more lines]"


@pytest.mark.slow
def test_an_error_of_a_real_actor_is_trimmed() -> None:
    import ray

    @ray.remote(num_cpus=0)
    def fails() -> None:
        {}["the key"]

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(ray.exceptions.RayTaskError) as raised:
            ray.get(fails.remote())
    finally:
        ray.shutdown()
    head, frame = trimmed(raised.value).splitlines()
    assert head == "KeyError: 'the key' (in fails)"
    assert "test_failures.py:" in frame
