# Sets NVCC to CUDA's compiler, or to nothing: the environment's, one on the PATH, the toolkit's, or
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
