#!/usr/bin/env bash
# Make an environment and install a platform's lock file and the project itself into it.
#
#   requirements/install.sh VENV [cpu|gpu]     without a platform: the environment and uv alone
#
# pip is used where a machine's own settings matter (torch's CPU build may be a local file); uv does the rest, in
# half a minute instead of three. PYTHON names the interpreter; else the first fitting one is taken.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv_pin=uv==0.13.9
venv=$1
platform=${2:-}
python=$venv/bin/python

say() { echo "==> $*"; }
fail() {
    printf 'set-up: %s\n' "$@" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3 python}; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
            >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

check_machine() {
    [ "$(uname -sm)" = "Linux x86_64" ] ||
        fail "the lock files are for Linux on x86_64, and this is $(uname -sm)."
    command -v "${CXX:-g++}" >/dev/null ||
        fail "no C++ compiler (${CXX:-g++}): DeepSpeed compiles an operator at its first start. On Debian: apt install g++"
    "$1" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        fail "$1 has no headers, which DeepSpeed compiles against. On Debian: apt install python3-dev"
}

make_environment() {
    local base
    base=$(find_python) ||
        fail "${PYTHON:-python3} is not Python 3.11 or 3.12 with its venv module." \
            "install one (on Debian: apt install python3 python3-venv), or name one: make setup PYTHON=/where/it/is"
    check_machine "$base"
    say "making $venv with $("$base" --version)"
    "$base" -m venv "$venv"
    "$python" -m pip install -qq --no-deps "$uv_pin"
}

# The CPU build of torch is not on PyPI. It is asked for where pip was told to look; PyTorch's own index comes second,
# and for torch alone, because pip retries an index that it cannot reach for minutes per package.
install_cpu_torch() {
    local pin log=$venv/torch.log
    pin=$(grep -oE '^torch==[^ ]+' requirements/cpu.txt)
    say "installing $pin"
    "$python" -m pip install --no-deps --no-compile "$pin" >"$log" 2>&1 ||
        "$venv/bin/uv" pip install --python "$python" --no-deps --torch-backend cpu "$pin" >>"$log" 2>&1 || {
        cat "$log" >&2
        fail "$pin was found neither where pip looks nor on PyTorch's CPU index (above: what both said)." \
            "with its wheel in a folder, PIP_FIND_LINKS=<folder> make setup takes it from there."
    }
}

install_locked() {
    local lock=requirements/$platform.txt
    say "installing $(grep -c == "$lock") packages of $lock"
    "$venv/bin/uv" pip install -q --python "$python" --no-deps -r "$lock" || {
        say "uv could not; trying pip, which takes a few minutes"
        "$python" -m pip install -qq --no-deps --no-compile -r "$lock"
    }
    "$python" -m pip install -qq --no-deps --no-build-isolation -e .
}

# Also does what the first start of an engine would otherwise wait for: the bytecode of what every process of a run
# loads and, on CPU, DeepSpeed's operator compiled and vLLM's look into the model class, both kept in ~/.cache. Two
# processes, for two cores.
check_imports() {
    local log=$venv/import.log half
    local vllm='from vllm import AsyncEngineArgs'
    local others='import datasets, deepspeed, ray, wandb; from transformers import LlamaForCausalLM'
    if [ "$platform" = cpu ]; then
        vllm+='; from vllm.model_executor.models.registry import ModelRegistry'
        vllm+='; ModelRegistry.models["LlamaForCausalLM"].inspect_model_cls()'
        others+='; from deepspeed.comm.torch import build_shm_op; build_shm_op()'
        export DS_ACCELERATOR=cpu
    fi
    say "checking that the engines import, and preparing their first start"
    timeout 300 "$python" -c "$vllm" >"$log" 2>&1 &
    half=$!
    if ! PATH="$(cd "$venv/bin" && pwd):$PATH" timeout 300 "$python" -c "$others" >>"$log" 2>&1 || ! wait "$half"; then
        wait
        cat "$log" >&2
        fail "what was installed does not import within 300 s (above)." \
            "if an earlier set-up or run was killed while DeepSpeed compiled: rm -r ~/.cache/torch_extensions"
    fi
}

[ -x "$venv/bin/uv" ] || make_environment
[ -n "$platform" ] || exit 0
for other in "$venv"/.ready-*; do
    case $other in
    *"/.ready-*" | *"/.ready-$platform"*) ;;
    *) fail "$venv holds the packages of another platform: name a second one with VENV=..., or make clean." ;;
    esac
done
[ "$platform" != cpu ] || install_cpu_torch
install_locked
check_imports
say "$venv is ready"
