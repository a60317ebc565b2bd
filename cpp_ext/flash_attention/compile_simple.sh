#!/usr/bin/env bash
# Compiles one kernel: compile_simple.sh cuda/kernels/hdim128_f16.cu
#
# Prints seconds, the compiler's peak memory, and for each kernel its registers and spills.
# Environment: CUDA_ARCH (default: 75 90a) and NVCC.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 1 ] || { echo "usage: compile_simple.sh FILE.cu" >&2; exit 2; }

. "$here/find_nvcc.sh"
if [ -z "$NVCC" ]; then
    echo "no nvcc of CUDA 12 or later: nothing to compile with (the CUDA toolkit and pip's" \
        "nvidia-cuda-nvcc have it)"
    exit 77
fi
object=$(mktemp --suffix=.o)
trap 'rm -f "$object"' EXIT
archs=${CUDA_ARCH:-75 90a}
for arch in ${archs//[;,]/ }; do
    python3 - "$NVCC" -std=c++20 -O3 "-arch=sm_$arch" -Xptxas -v "-I$here/.." -c "$1" -o "$object" <<'PYTHON'
import re, resource, subprocess, sys, time

begun = time.monotonic()
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
seconds = time.monotonic() - begun
if done.returncode:
    sys.exit(done.stdout + done.stderr)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
arch = next(a for a in sys.argv if a.startswith("-arch="))[6:]
print(f"{arch}: {seconds:.1f} s, {peak:.0f} MB")
kernels = re.findall(r"Compiling entry function '(\w+)'", done.stderr)
spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
registers = re.findall(r"Used (\d+) registers", done.stderr)
for name, (stores, loads), used in zip(kernels, spills, registers, strict=True):
    print(f"  {name}: {used} registers, {int(stores) + int(loads)} bytes spilled")
PYTHON
done
