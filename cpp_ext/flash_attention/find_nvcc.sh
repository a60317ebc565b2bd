# Sets NVCC to the compiler of CUDA 12 or later, or to nothing: the environment's, one on the PATH, the toolkit's, or
# that of PyPI's nvidia-cuda-nvcc.
if [ -z "${NVCC+x}" ]; then
    NVCC=$(command -v nvcc || true)
    [ -n "$NVCC" ] || NVCC=$(ls /usr/local/cuda/bin/nvcc 2>/dev/null || true)
    [ -n "$NVCC" ] || NVCC=$(python3 - <<'PYTHON' 2>/dev/null || true
import pathlib, nvidia
found = [p for root in nvidia.__path__ for p in pathlib.Path(root).glob("**/bin/nvcc")]
print(found[0] if found else "")
PYTHON
)
fi
if [ -n "$NVCC" ]; then
    release=$("$NVCC" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\).*/\1/p')
    if [ "${release:-0}" -lt 12 ]; then
        echo "$NVCC is of CUDA ${release:-(no version)}; expected 12 or later" >&2
        NVCC=
    fi
fi
