#!/usr/bin/env bash
# All kernels: heads of up to 64, 96, 128, 192 and 256 elements, in fp16, bf16 and e4m3.
exec "$(dirname "$0")/build.sh" "${1:-build_full}"
