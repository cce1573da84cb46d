#!/usr/bin/env bash
# Create an environment and install the lock file of a platform and the project itself into it. Then check that no file
# belongs to two packages, and import everything that an engine will import.
#
#   requirements/install.sh VENV            create the environment and install uv only
#   requirements/install.sh VENV cpu|gpu    install and check a platform
#   requirements/install.sh VENV test       add the test tools to an environment with a platform
#
# LOCKS names the directory of the lock files; `make lock` tries new ones before it replaces the old ones.
#
# pip is used where the settings of the machine matter (the CPU build of torch may be a local file). uv installs the
# other packages, in half a minute instead of three. PYTHON names the interpreter; the default is the first one that fits.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv_pin=uv==0.13.9
import_timeout_s=${IMPORT_TIMEOUT_S:-600}
venv=$1
platform=${2:-}
locks=${LOCKS:-requirements}
python=$venv/bin/python

say() { echo "==> $*"; }
fail() {
    printf 'setup: %s\n' "$@" >&2
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
        fail "the lock files are for Linux on x86_64, but this machine runs $(uname -sm)."
    command -v "${CXX:-g++}" >/dev/null ||
        fail "there is no C++ compiler (${CXX:-g++}), and DeepSpeed compiles an operator when it first starts." \
            "install one (on Debian: apt install g++), or name one with CXX."
    "$1" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        fail "the headers of $1 are missing, and DeepSpeed compiles against them." \
            "install them (on Debian: apt install python3-dev)."
}

make_environment() {
    local base
    base=$(find_python) ||
        fail "${PYTHON:-python3} is not Python 3.11 or 3.12 with its venv module." \
            "install one (on Debian: apt install python3 python3-venv), or name one: make setup PYTHON=/path/to/python3"
    check_machine "$base"
    say "creating $venv with $("$base" --version)"
    "$base" -m venv "$venv"
    "$python" -m pip install -qq --no-deps "$uv_pin"
}

# The CPU build of torch is not on PyPI. pip's configured sources are tried first. PyTorch's index comes second and is
# used for torch only, because pip retries an unreachable index for minutes per package.
install_cpu_torch() {
    local pin log=$venv/torch.log
    pin=$(grep -oE '^torch==[^ ]+' "$locks/cpu.txt")
    say "installing $pin"
    "$python" -m pip install --no-deps --no-compile "$pin" >"$log" 2>&1 ||
        "$venv/bin/uv" pip install --python "$python" --no-deps --torch-backend cpu "$pin" >>"$log" 2>&1 || {
        cat "$log" >&2
        fail "$pin was not found in pip's sources or on PyTorch's CPU index (see the messages above)." \
            "if you have its wheel in a directory, run: PIP_FIND_LINKS=<directory> make setup"
    }
}

install_locked() {
    local lock=$locks/$platform.txt
    say "installing $(grep -c == "$lock") packages of $lock"
    "$venv/bin/uv" pip install -q --python "$python" --no-deps -r "$lock" || {
        say "uv failed; trying pip, which takes a few minutes"
        # Without --use-pep517 an old pip may install a source package in a way that leaves no list of its files.
        "$python" -m pip install -qq --no-deps --no-compile --use-pep517 -r "$lock"
    }
}

check_files() {
    "$python" -m requirements.owned_files ||
        fail "the files of $venv, installed from $locks/$platform.txt, are not as they should be (see the messages above)."
}

# requirements/check_imports.py says what is imported, and what else this prepares. It also compiles the bytecode of the
# modules that every process of a run loads. It uses two processes, for two cores.
check_imports() {
    local log=$venv/import.log half
    say "checking that the engines can be imported, and preparing their first start"
    : >"$log"
    export PATH="$(cd "$venv/bin" && pwd):$PATH"
    timeout "$import_timeout_s" "$python" -m requirements.check_imports "$platform" sampling >>"$log" 2>&1 &
    half=$!
    if ! timeout "$import_timeout_s" "$python" -m requirements.check_imports "$platform" training >>"$log" 2>&1 ||
        ! wait "$half"; then
        wait
        cat "$log" >&2
        fail "the installed packages could not be imported within $import_timeout_s s (see the messages above)" \
            "if an earlier setup or run was killed while DeepSpeed compiled, run: rm -r ~/.cache/torch_extensions" \
            "if the messages name no error and the machine is busy, allow more time: IMPORT_TIMEOUT_S=3600 make setup"
    fi
}

[ -x "$venv/bin/uv" ] || make_environment
[ -n "$platform" ] || exit 0
if [ "$platform" = test ]; then
    install_locked
    check_files
    exit 0
fi
for other in "$venv"/.ready-*; do
    case $other in
    *"/.ready-*" | *"/.ready-$platform"*) ;;
    *) fail "$venv has the packages of another platform: choose another directory with VENV=..., or run: make clean" ;;
    esac
done
[ "$platform" != cpu ] || install_cpu_torch
install_locked
"$python" -m pip install -qq --no-deps --no-build-isolation -e .
check_files
check_imports
say "$venv is ready"
