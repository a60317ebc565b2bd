#!/usr/bin/env bash
# Four kernels: heads of up to 64 and 128 elements, in fp16 and bf16.
exec "$(dirname "$0")/build.sh" "${1:-build_minimal}" -DFA_MINIMAL=ON
