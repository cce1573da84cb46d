"""The configuration that vLLM's CUDA build resolves from the engine's arguments, on simulated GPUs.

`make gpu-config` installs requirements/gpu.txt into an environment of its own and runs `test_resolution.py` there,
which writes `results.json` and `results.md`. The default suite only compares these results with the present arguments
and lock (`test_results.py`). No kernel runs, so the results show which code vLLM chooses, not that it works on a GPU.
"""
