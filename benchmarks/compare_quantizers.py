"""Compares the search for scales with llama.cpp's: errors and time.

    python benchmarks/compare_quantizers.py
    python benchmarks/compare_quantizers.py --ggml libggml-base.so --matrix m.gguf:NAME --markdown

--ggml: llama.cpp's library; without it, that of an installed llama-cpp-python. --matrix: a tensor
of a GGUF file, for trained weights beside random ones; may be repeated.

Both quantise the same matrices in this process, on one thread, in turns; the time is the shortest
of three. An error is the root of the mean squared error, with importance weighted by it. The table
has ours over theirs, without importance and with it: below 1 is better.
"""

import argparse
import ctypes
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from airllm.formats.ggml_types import TYPES
from airllm.formats.gguf import GGUFFile
from airllm.formats.numbers import WEIGHTED, decode

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

SIZE = (256, 1024)
TURNS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(arguments)
    library = args.ggml or _installed()
    if library is None or not library.is_file():
        parser.error("llama.cpp's library is not there; name libggml-base.so with --ggml")
    import tensor_ops_cpp as ops

    ops.set_num_threads(1)
    theirs = _quantizer(library)
    matrices = _random() | {name: _read(name) for name in args.matrix}
    edge = "| " if args.markdown else ""
    titles = ["type", *matrices, "Mweights/s", "times theirs"]
    print(edge + " | ".join(titles) + (" |" if args.markdown else ""))
    if args.markdown:
        print("|---" * len(titles) + "|")
    for type in WEIGHTED:
        cells, seconds, n = [], np.zeros(2), 0
        for x in matrices.values():
            ratios = []
            for importance in (None, _importance(x.shape[1])):
                makers = (ops.quantize, theirs)
                made, times = zip(*(_timed(f, x, type, importance) for f in makers), strict=True)
                seconds, n = seconds + times, n + x.size
                ours, other = (_loss(x, ops.dequantize(m, type), importance) for m in made)
                ratios.append(f"{ours / other:.3f}" if other else "-")
            cells.append(", ".join(ratios))
        speed = f"{n / seconds[0] / 1e6:.1f}", f"{seconds[1] / seconds[0]:.1f}x"
        print(edge + " | ".join([type, *cells, *speed]) + (" |" if args.markdown else ""))
    return 0


def _installed() -> Path | None:
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "lib/libggml-base.so"


def _quantizer(library: Path) -> Callable[[Floats, str, Floats | None], Bytes]:
    quantize = ctypes.CDLL(str(library)).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    numbers = [ctypes.c_int64] * 3
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *numbers, ctypes.c_void_p]
    kinds = {kind.name: (number, kind) for number, kind in TYPES.items()}

    def made(x: Floats, type: str, importance: Floats | None) -> Bytes:
        number, kind = kinds[type]
        out = np.empty((len(x), kind.row_bytes(x.shape[1])), np.uint8)
        weights = None if importance is None else importance.ctypes.data
        quantize(number, x.ctypes.data, out.ctypes.data, 0, *x.shape, weights)
        return out

    return made


def _timed(
    quantize: Callable[[Floats, str, Floats | None], Bytes],
    x: Floats,
    type: str,
    importance: Floats | None,
) -> tuple[Bytes, float]:
    times = []
    for _ in range(TURNS):
        start = time.perf_counter()
        made = quantize(x, type, importance)
        times.append(time.perf_counter() - start)
    return made, min(times)


def _random() -> dict[str, Floats]:
    random = np.random.default_rng(0)
    drawn = {
        "normal": random.standard_normal(SIZE),
        "Laplace": random.laplace(size=SIZE),
        "Student's t (3)": random.standard_t(3, SIZE),
    }
    return {name: (x * 0.02).astype(np.float32) for name, x in drawn.items()}


def _importance(k: int) -> Floats:
    return np.exp(np.random.default_rng(1).normal(0, 1.5, k)).astype(np.float32)


def _read(matrix: str) -> Floats:
    path, _, name = matrix.rpartition(":")
    with GGUFFile.open(path) as file:
        tensor = file.tensors[name]
        return decode(file.data(name).reshape(-1, tensor.row_bytes), tensor.type).copy()


def _loss(x: Floats, found: Floats, importance: Floats | None) -> float:
    error = (x.astype(np.float64) - found) ** 2
    return float(np.sqrt((error * (1 if importance is None else importance)).mean()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ggml", type=Path, metavar="LIB", help="libggml-base.so")
    parser.add_argument("--matrix", action="append", default=[], metavar="FILE:NAME")
    parser.add_argument("--markdown", action="store_true", help="print a table for the docs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
