#!/usr/bin/env bash
# Runs the C++ kernels under the sanitizers of GCC, in copies of the checkout.
#
# Usage:
#     bash benchmarks/sanitize.sh [address] [undefined] [thread]      # all of them by default
#     ACMIX_SWEEP=20 ROUNDS=5 bash benchmarks/sanitize.sh address     # a short run
#
#     address      tests/ops under AddressSanitizer, with ACMIX_SWEEP (300) random shapes of each kind
#     undefined    the same under UndefinedBehaviorSanitizer
#     thread       benchmarks/threads.py under ThreadSanitizer: 4 threads, 3 Python threads
#
# It ends with an error at the first finding. Needs g++ with its sanitizers, and the environment of
# `make install`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ROOT=$PWD
PYTHON=$ROOT/.venv/bin/python
BUILD=$ROOT/build/sanitize
export ACMIX_SWEEP=${ACMIX_SWEEP:-300} ROUNDS=${ROUNDS:-60} OMP_NUM_THREADS=4 ACMIX_BUILD_KERNELS=1

library() { gcc -print-file-name="lib$1.so"; }

# Compiles the kernels with a sanitizer in a copy of the checkout, and enters the copy.
build() {
    local name=$1 flags=$2
    rm -rf "${BUILD:?}/$name"
    mkdir -p "$BUILD/$name"
    cd "$ROOT"
    { git ls-files --cached --others --exclude-standard && git ls-files --deleted; } | sort | uniq -u |
        tar --create --files-from - | tar --extract --directory "$BUILD/$name"
    cd "$BUILD/$name"
    printf '%s: compiling\n' "$name"
    CC=gcc CXX=g++ CFLAGS="$flags -g1" LDFLAGS=$flags "$PYTHON" setup.py -q build_ext -i -f >build.log 2>&1 ||
        { tail -n 30 build.log >&2; exit 1; }
}

# Runs Python with libraries loaded before all others.
run_with() {
    local libraries=$1
    shift
    LD_PRELOAD=$libraries PYTHONPATH=$PWD "$PYTHON" "$@"
}

# Runs the tests that reach the C++ kernels with a sanitizer's library.
run_tests() {
    run_with "$(library "$1") $(library stdc++)" -m pytest -q -p no:cacheprovider tests/ops \
        --ignore tests/ops/test_torch_compat.py -k 'not compile and not triton'
}

run_address() {
    build address -fsanitize=address
    ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 run_tests asan
}

run_undefined() {
    build undefined '-fsanitize=undefined -fno-sanitize-recover=undefined'
    UBSAN_OPTIONS=print_stacktrace=1 run_tests ubsan
}

run_thread() {
    build thread -fsanitize=thread
    g++ -O1 -g -fPIC -shared -fsanitize=thread benchmarks/openmp_on_threads.cpp -o openmp.so
    # ThreadSanitizer needs its addresses where a randomized layout may have put something else.
    TSAN_OPTIONS='halt_on_error=1 exitcode=66' run_with "$(library tsan) $PWD/openmp.so" \
        -m benchmarks.threads --rounds "$ROUNDS"
}

for name in "${@:-address undefined thread}"; do
    for each in $name; do
        case $each in
            address | undefined | thread) ;;
            *) printf 'sanitize: %s is none of address, undefined, thread\n' "$each" >&2; exit 1 ;;
        esac
        "run_$each"
        printf '%s: no findings\n' "$each"
    done
done
