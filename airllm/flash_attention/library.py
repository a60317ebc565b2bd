"""The attention library: found, loaded at the first call, and called.

It is `libflash_attn_standalone.so.1` (docs/pages/attention.md), built into this package. The
environment variable AIRLLM_ATTENTION_LIBRARY names another file. ctypes releases the GIL while a
call runs.
"""

import ctypes
import functools
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.flash_attention.arrays import TYPES, TensorStruct
from airllm.flash_attention.scalars import int32

# By its soname, as Python takes what ends in ".so" for a module.
BUILT_IN = Path(__file__).parent / "libflash_attn_standalone.so.1"
MAJOR_VERSION = 1

CAUSAL, ROTARY_INTERLEAVED, DETERMINISTIC, SCALE_SET = 1, 2, 4, 8

TENSORS = (
    *("q", "k", "v", "k_new", "v_new", "q_v", "out", "lse", "sinks", "rotary_cos", "rotary_sin"),
    *("q_descale", "k_descale", "v_descale"),
)
ARRAYS = (
    *("cu_seqlens_q", "cu_seqlens_k", "cu_seqlens_k_new", "seqused_q", "seqused_k", "page_table"),
    *("kv_batch_idx", "leftpad_k", "seqlens_rotary"),
)
NUMBERS = (
    *("max_seqlen_q", "max_seqlen_k", "window_left", "window_right", "attention_chunk"),
    *("num_splits", "pack_gqa", "sm_margin"),
)


class ForwardStruct(ctypes.Structure):
    """fa_fwd_params of flash_attn.h."""

    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        *((name, TensorStruct) for name in TENSORS),
        *((name, ctypes.c_void_p) for name in ARRAYS),
        ("batch", ctypes.c_int64),
        ("page_table_stride", ctypes.c_int64),
        ("page_table_columns", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in NUMBERS),
        ("softmax_scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_uint64),
        ("scheduler_metadata", ctypes.c_void_p),
    )


class CombineStruct(ctypes.Structure):
    """fa_combine_params of flash_attn.h."""

    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        *((name, TensorStruct) for name in ("out_partial", "lse_partial", "out", "lse")),
    )


ERRORS = (
    *(RuntimeError, ValueError, NotImplementedError, NotImplementedError, NotImplementedError),
    *(MemoryError, RuntimeError),
)
"""By fa_status."""


@functools.cache
def library() -> ctypes.CDLL:
    """Raises ImportError where there is none, or one of another version."""
    path = Path(os.environ.get("AIRLLM_ATTENTION_LIBRARY") or BUILT_IN).absolute()
    if not path.is_file():
        raise ImportError(
            f"the attention library is not at {path}: build it with `python cpp_ext/"
            f"attention_library.py FOLDER` and let AIRLLM_ATTENTION_LIBRARY name the file, or "
            "install airllm-cpp with its extension"
        )
    try:
        loaded = ctypes.CDLL(str(path))
        loaded.fa_last_error.restype = loaded.fa_build_info.restype = ctypes.c_char_p
        loaded.fa_version.restype = ctypes.c_uint32
    except (OSError, AttributeError) as error:
        raise ImportError(f"{path} is no attention library: {error}") from None
    if (major := loaded.fa_version() // 1_000_000) != MAJOR_VERSION:
        raise ImportError(f"{path} is version {major}; expected version {MAJOR_VERSION}")
    return loaded


def forward(params: ForwardStruct, threads: int | None, names: Mapping[str, str]) -> None:
    """fa_fwd, with a workspace. names: what the caller knows fields as, where that is not their
    name. Raises ValueError, TypeError, NotImplementedError or MemoryError."""
    lib, own = library(), _context(threads)
    n, at = ctypes.c_uint64(), ctypes.byref(params)
    _check(lib.fa_fwd_workspace(own, at, ctypes.byref(n)), names)
    memory = _workspace(n.value)
    params.workspace, params.workspace_bytes = memory.ctypes.data, n.value
    _check(lib.fa_fwd(own, at, None), names)


def combine(params: CombineStruct, threads: int | None) -> None:
    """fa_combine."""
    _check(library().fa_combine(_context(threads), ctypes.byref(params), None), {})


def _context(threads: Any) -> ctypes.c_void_p:
    """One for each number of threads, which all threads of Python share."""
    if threads is None:
        return _context_of("cpu")
    number = int32(threads, "threads")
    if not 1 <= number <= 1024:
        raise ValueError(f"threads is {number}; expected 1 to 1024")
    return _context_of(f"cpu:{number}")


@functools.cache
def _context_of(device: str) -> ctypes.c_void_p:
    made = ctypes.c_void_p()
    _check(library().fa_context_create(device.encode(), ctypes.byref(made)), {})
    return made


_kept = threading.local()
_KEPT_BYTES = 64 << 20
"""The largest workspace that a thread keeps for its next call."""


def _workspace(n: int) -> NDArray[np.uint8]:
    memory: NDArray[np.uint8] | None = getattr(_kept, "memory", None)
    if memory is None or memory.size < n:
        memory = np.empty(max(n, 1), np.uint8)
        if n <= _KEPT_BYTES:
            _kept.memory = memory
    return memory


def _check(status: int, names: Mapping[str, str]) -> None:
    """Raises what the library says is wrong."""
    if not status:
        return
    text = library().fa_last_error().decode(errors="replace")
    error: type[Exception] = ERRORS[status] if status < len(ERRORS) else RuntimeError
    if re.match(r"\w+\.type is \d", text):
        error = TypeError
        text = re.sub(r"\.type is (\d)", lambda found: f" is {_type(found[1])}", text)
        text = re.sub(r"expected (\d),", lambda found: f"expected {_type(found[1])},", text)
    if names:
        words = "|".join(sorted(names, key=len, reverse=True))
        text = re.sub(rf"\b({words})\b", lambda found: names[found[1]], text)
    raise error(text.replace("NULL", "None"))


def _type(number: str) -> str:
    return TYPES[int(number)] if int(number) < len(TYPES) else number
