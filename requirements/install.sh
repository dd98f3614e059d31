#!/usr/bin/env bash
# Sets up .venv with the whole stack: torch, mmcv with compiled ops, mmdet, mmseg and this package.
#
# Usage:
#     make install                       # or: bash requirements/install.sh
#     make install PYTHON=python3.12     # with a Python of your choice
#     bash requirements/install.sh classic
#
# A second run finds nothing to do and takes no time; an interrupted one is simply run again.
# The versions stand in requirements/pins.txt. On a machine with CUDA, mmcv's CUDA ops are compiled.
#
# `classic` sets up .venv-classic with the oldest supported torch and upstream's libraries, whose
# versions stand in requirements/classic.txt, and with a copy of the checkout in
# .venv-classic/checkout: kernels compiled for two versions of torch cannot share a folder.
#
# Environment variables:
#     ACMIX_WHEEL_CACHE      where the compiled mmcv is kept (~/.cache/acmix-mm/wheels)
#     CXX                    the C++ compiler (c++)
#     MAX_JOBS               files compiled at a time (one for each core)
#     TORCH_CUDA_ARCH_LIST   GPU architectures to compile for (those of this machine)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1:-} in
    '')
        VENV=$PWD/.venv
        SOURCE=$PWD
        PINS=requirements/pins.txt
        MMCV=$(grep -v '^#' requirements/mmcv.txt)
        NEWEST_PYTHON=13
        PACKAGES=(-e "$SOURCE[det,seg,pretrain,export,test,dev]")
        ;;
    classic)
        VENV=$PWD/.venv-classic
        SOURCE=$VENV/checkout
        PINS=requirements/classic.txt
        MMCV=mmcv
        NEWEST_PYTHON=11 # that torch has wheels for
        PACKAGES=(-r "$PINS" -e "$SOURCE")
        ;;
    *)
        printf 'install: no stack %s; the only name is classic\n' "$1" >&2
        exit 1
        ;;
esac
STAMP=$VENV/installed
LOG=$VENV/install.log
WHEEL_CACHE=${ACMIX_WHEEL_CACHE:-${XDG_CACHE_HOME:-${HOME:-~}/.cache}/acmix-mm/wheels}
CXX=${CXX:-c++}
PYTHONS='python3 python3.13 python3.12 python3.11 python3.10 python'

fail() {
    printf 'install: %s\n' "$*" >&2
    exit 1
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

is_supported() {
    "$1" -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, $NEWEST_PYTHON))" 2>/dev/null
}

# Prints the Python to make the environment with: $PYTHON, or else the first one that will do.
find_python() {
    local python
    if [ -n "${PYTHON:-}" ]; then
        is_supported "$PYTHON" || fail "PYTHON=$PYTHON is $(version_of "$PYTHON" | grep . || echo 'not a Python that runs');" \
            "Python 3.10 to 3.$NEWEST_PYTHON is needed"
        echo "$PYTHON"
        return
    fi
    for python in $PYTHONS; do
        if is_supported "$python"; then
            echo "$python"
            return
        fi
    done
    fail "no Python 3.10 to 3.$NEWEST_PYTHON was found on PATH: install one, or name it (make install PYTHON=/path/to/python3)"
}

# Runs a command with its output in the log, and shows meanwhile how long it has taken and how far
# it has got. The command gets its own process group: an interrupt has to reach the compilers too.
step() {
    local title=$1 start=$SECONDS wait_s=10 shown
    shift
    [ ! -t 1 ] || wait_s=1
    shown=-$wait_s
    printf '\n### %s: %s\n' "$title" "$*" >>"$LOG"
    set -m
    "$@" >>"$LOG" 2>&1 </dev/null &
    group=$!
    set +m
    while kill -0 "$group" 2>/dev/null; do
        if ((SECONDS - start >= shown + wait_s)); then
            shown=$((SECONDS - start))
            report "$title" "$shown" "$(progress)"
        fi
        sleep 0.2
    done
    if ! wait "$group"; then
        printf '\n' >&2
        tail -n 20 "$LOG" >&2
        fail "$title failed: the end of the log is above, all of it in $LOG"
    fi
    group=
    report "$title" $((SECONDS - start)) 'done'
    [ ! -t 1 ] || printf '\n'
}

# One line a report; on a terminal, the same line over and over.
report() {
    local format='%s: %d s  %s\n'
    [ ! -t 1 ] || format='\r\033[K%s: %d s  %s'
    # shellcheck disable=SC2059
    printf "$format" "$@"
}

# The compiled files as ninja counts them, or what pip is at; short, to fit the line.
progress() {
    local last
    last=$(tail -n 1 "$LOG" | sed 's/^ *//' | cut -c 1-33)
    case $last in
        '['*/*']'*) echo "${last%%]*}] files compiled" ;;
        Collecting* | Downloading* | Installing*) echo "$last" ;;
        'WARNING: Retrying'*) echo 'no connection to the package index, trying again' ;;
    esac
}

clean_up() {
    [ -z "${group:-}" ] || kill -- "-$group" 2>/dev/null || true
    [ -z "${build_dir:-}" ] || rm -rf "$build_dir"
}

venv_pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }

# What an installation depends on; a change of any of it installs anew.
digest() {
    find requirements setup.py acmix_mm -type f \
        \( -path 'requirements/*' -o -name setup.py -o -path '*/csrc/*' \) -exec cksum {} + | sort
    echo "$PWD"
}

is_up_to_date() {
    [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(digest)" ] && is_supported "$VENV/bin/python"
}

# An environment that was there stays, whichever Python it has: it may not be the one asked for.
check_venv_python() {
    local found wanted
    if [ -z "${PYTHON:-}" ] || ! found=$(version_of "$VENV/bin/python"); then
        return
    fi
    wanted=$(version_of "$PYTHON") || true
    wanted=${wanted:-that does not run}
    [ "$found" = "$wanted" ] ||
        fail "PYTHON=$PYTHON is Python $wanted, but ${VENV##*/} holds Python $found: run 'make clean' first, or leave PYTHON out"
}

make_venv() {
    local python
    if is_supported "$VENV/bin/python" && venv_pip --version >/dev/null 2>&1; then
        return
    fi
    python=$(find_python)
    "$python" -m venv --clear "$VENV" >/dev/null ||
        fail "$python cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)"
}

check_compiler() {
    command -v "$CXX" >/dev/null ||
        fail "no C++ compiler ($CXX) was found, which mmcv's ops need: install g++ or clang++, or set CXX"
    "$CXX" -std=c++17 -fsyntax-only -x c++ - <<<'#include <optional>' 2>/dev/null ||
        fail "$("$CXX" --version | head -n 1) does not compile C++17, which mmcv's ops need: install g++ >= 9 or clang++ >= 9, or set CXX"
    "$VENV/bin/python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        fail "Python $(version_of "$VENV/bin/python")'s headers are missing (on Debian and Ubuntu: apt install python3-dev)"
}

# The folder of the wheel cache for this torch, Python and set of GPU architectures.
wheel_dir() {
    "$VENV/bin/python" - <<'PY'
import os
import sys

import torch

archs = 'cpu'
if torch.cuda.is_available() or os.environ.get('FORCE_CUDA') == '1':
    from torch.utils.cpp_extension import CUDA_HOME

    if CUDA_HOME is None:
        sys.exit(
            f'install: torch {torch.__version__} uses CUDA, but nvcc was not found, which mmcv\'s ops need: install '
            f'the CUDA toolkit {torch.version.cuda} or set CUDA_HOME (or CUDA_VISIBLE_DEVICES= to do without GPUs)'
        )
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    archs = os.environ.get('TORCH_CUDA_ARCH_LIST') or ' '.join(f'{a}.{b}' for a, b in sorted(found))
print(f'torch{torch.__version__}-cp{sys.version_info[0]}{sys.version_info[1]}-{archs}'.replace(' ', '_'))
PY
}

# Compiler flags that make the build several times faster than setuptools' default ones: no debug
# information, and torch's headers compiled once. A compiler that cannot use the precompiled header
# reads the headers as usual. Setting CXXFLAGS replaces the default -O3, so it is named again.
compiler_flags() {
    local flags='-O3 -DNDEBUG -g0' header=$build_dir/torch.hpp includes
    includes=$("$VENV/bin/python" -c '
import sysconfig
from torch.utils.cpp_extension import include_paths
print(*(f"-I{path}" for path in [*include_paths(), sysconfig.get_path("include")]))')
    echo '#include <torch/types.h>' >"$header"
    # shellcheck disable=SC2086
    if "$CXX" -w $flags -fPIC -std=c++17 -DTORCH_API_INCLUDE_EXTENSION_H -DTORCH_EXTENSION_NAME=_ext \
        $includes -x c++-header "$header" -o "$header.gch" >>"$LOG" 2>&1; then
        flags="$flags -include $header"
    fi
    echo "$flags"
}

build_mmcv() {
    local flags jobs
    flags=$(compiler_flags)
    jobs=${MAX_JOBS:-$("$VENV/bin/python" -c 'import os; print(os.cpu_count())')}
    TMPDIR=$build_dir CXX=$CXX CFLAGS=$flags CXXFLAGS=$flags MAX_JOBS=$jobs PATH=$VENV/bin:$PATH \
        venv_pip wheel -v --no-cache-dir --no-build-isolation --no-deps -c "$PINS" -w "$build_dir" "$MMCV"
}

# Sets `wheel` to the compiled mmcv of this torch and Python, built on its first use.
find_or_build_wheel() {
    local dir
    dir=$(wheel_dir)
    dir=$WHEEL_CACHE/$dir
    wheel=$(compiled_wheel "$dir")
    if [ -n "$wheel" ]; then
        echo "mmcv's ops: $wheel"
        return
    fi
    check_compiler
    build_dir=$(mktemp -d)
    step "compiling mmcv's ops (only this once)" build_mmcv
    wheel=$(compiled_wheel "$build_dir")
    [ -n "$wheel" ] || fail "mmcv was built without its compiled ops ($(cd "$build_dir" && echo *.whl)); see $LOG"
    mkdir -p "$dir"
    cp "$wheel" "$dir/partial.$$" # then a move, so that the cache never holds half a wheel
    mv "$dir/partial.$$" "$dir/${wheel##*/}"
    wheel=$dir/${wheel##*/}
    rm -rf "$build_dir"
}

# The wheel of the pinned mmcv in a folder, if it is a compiled one: built where torch was not
# found, the wheel is py3-none-any.
compiled_wheel() {
    local version
    version=$(sed -n "s/^$MMCV==\([^ ]*\).*/\1/p" "$PINS")
    [ ! -d "$1" ] || find "$1" -name "${MMCV//-/_}-$version-cp*.whl" | head -n 1
}

# Copies the checkout, without what git ignores, if the stack has a copy. What was built there stays.
copy_checkout() {
    [ "$SOURCE" != "$PWD" ] || return 0
    mkdir -p "$SOURCE"
    find "$SOURCE" -type f ! -name '*.so' ! -path "$SOURCE/build/*" ! -path '*.egg-info/*' -delete
    { git ls-files --cached --others --exclude-standard && git ls-files --deleted; } | sort | uniq -u |
        tar --create --files-from - | tar --extract --directory "$SOURCE"
}

# Upstream's mmengine looks for configs in site-packages, where an editable installation has no folder.
link_package() {
    [ "$SOURCE" != "$PWD" ] || return 0
    local folder
    for folder in "$VENV"/lib/python3.*/site-packages; do
        ln -sfn "$SOURCE/acmix_mm" "$folder/acmix_mm"
    done
}

check_installation() {
    cd "$SOURCE"
    "$VENV/bin/python" -c 'import acmix_mm, mmcv.ops, mmdet.apis, mmseg.apis'
}

main() {
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    check_venv_python
    if is_up_to_date; then
        copy_checkout
        return
    fi
    rm -f "$STAMP"
    make_venv
    copy_checkout
    [ -n "$(compiled_wheel "$WHEEL_CACHE")" ] || check_compiler # before a large download, if it is needed
    : >"$LOG"
    step 'installing torch and the build tools' venv_pip install -c "$PINS" -r requirements/build.txt
    find_or_build_wheel
    # Forced: the same version may be there, compiled for another torch.
    step "installing mmcv with its ops" venv_pip install --force-reinstall --no-deps "$wheel"
    step 'installing the OpenMMLab libraries and acmix-mm' \
        venv_pip install --no-build-isolation -c "$PINS" "${PACKAGES[@]}"
    # Both of OpenCV's packages write the same folder, and the last one counts: this one needs no libGL.
    step 'installing the headless OpenCV' \
        venv_pip install --force-reinstall --no-deps -c "$PINS" opencv-python-headless
    link_package
    step 'checking the installation' check_installation
    digest >"$STAMP"
}

main
