#!/usr/bin/env bash
# What build_full.sh and build_minimal.sh have in common: build.sh FOLDER [CMake's options...]
#
# Builds the library and test_varlen_inference in FOLDER, runs the test, and prints how long it
# took. Environment: JOBS, compilers at once (default: as the cores and the free memory allow),
# CUDA_ARCH ("75 90a"), NVCC, the compiler's path, and LONGEST, the test's longest prompt.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 1 ] || { echo "usage: build.sh FOLDER [CMake's options...]" >&2; exit 2; }
folder=$1
shift

. "$here/find_nvcc.sh"
options=("$@" "-DCMAKE_BUILD_TYPE=Release")
if [ -n "$NVCC" ]; then
    options+=("-DFA_CUDA=ON" "-DCMAKE_CUDA_COMPILER=$NVCC")
    [ -z "${CUDA_ARCH:-}" ] || options+=("-DCMAKE_CUDA_ARCHITECTURES=${CUDA_ARCH//[ ,]/;}")
else
    echo "no nvcc of CUDA 12 or later: the CPU backend alone (the CUDA toolkit and pip's" \
        "nvidia-cuda-nvcc have it)"
    options+=("-DFA_CUDA=OFF")
fi
if [ -z "${JOBS:-}" ]; then
    # One compiler takes up to 700 MB.
    free=$(awk '/MemAvailable/ {print int($2 / 700000)}' /proc/meminfo 2>/dev/null || echo 1)
    cores=$(nproc 2>/dev/null || echo 1)
    JOBS=$((free < 1 ? 1 : free < cores ? free : cores))
fi

SECONDS=0
mkdir -p "$folder"
log=$folder/configure.log
cmake -S "$here" -B "$folder" "${options[@]}" >"$log" 2>&1 || { cat "$log"; exit 1; }
cmake --build "$folder" -j "$JOBS"
echo "built in $SECONDS s with $JOBS jobs: $folder/libflash_attn_standalone.so"
status=0
# A list of instruction sets is for building alone.
env -u TENSOR_OPS_ISA "$folder/test_varlen_inference" "${LONGEST:-2048}" || status=$?
exit $((status == 77 ? 0 : status))  # 77: it ran on the CPU, and there is no GPU
