"""The arrays of a call, without copies: NumPy's, PyTorch's, and all that speak DLPack.

NumPy has bfloat16 and float8_e4m3fn from the package ml_dtypes, which it cannot export by DLPack;
PyTorch has them too, but cannot give them to NumPy. So what counts is taken from each kind of array
by itself: where its memory is, and its type, shape and strides.
"""

import ctypes
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TYPES = ("float32", "float16", "bfloat16", "float8_e4m3fn")
"""The names of the library's types, by their numbers."""

MAX_RANK = 5


class TensorStruct(ctypes.Structure):
    """fa_tensor of flash_attn.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * MAX_RANK),
        ("stride", ctypes.c_int64 * MAX_RANK),
    )


@dataclass(frozen=True)
class Array:
    """What the library needs to know of a caller's array."""

    owner: Any
    """Keeps the memory alive."""
    address: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""
    writable: bool = True

    def tensor(self, name: str) -> TensorStruct:
        """Raises TypeError or ValueError, by that name, where the library has no such tensor."""
        if self.dtype not in TYPES:
            raise TypeError(f"{name} is {self.dtype}; expected one of {', '.join(TYPES)}")
        n = len(self.shape)
        if n > MAX_RANK:
            raise ValueError(f"{name} has {n} dimensions; expected {MAX_RANK} or fewer")
        made = TensorStruct(self.address, TYPES.index(self.dtype), n)
        made.shape[:n], made.stride[:n] = self.shape, self.strides
        return made


def array_of(x: object, name: str) -> Array:
    """A NumPy array, a tensor of PyTorch on the CPU, or anything with DLPack on the CPU.

    Raises TypeError for anything else, ValueError for memory that is not the CPU's.
    """
    if isinstance(x, np.ndarray):
        return _of_numpy(x, name)
    if is_torch(x):
        return _of_torch(x, name)
    if hasattr(x, "__dlpack__"):
        return _of_dlpack(x, name)
    raise TypeError(
        f"{name} is a {type(x).__name__}; expected a NumPy array, a tensor of PyTorch, or an array "
        "with DLPack"
    )


def indices(x: object, name: str, shape: tuple[int, ...]) -> NDArray[np.int32]:
    """An array of integers, or a list, of this shape (-1: any size) as contiguous int32; without a
    copy where it is that. Raises TypeError or ValueError."""
    if is_torch(x) or (hasattr(x, "__dlpack__") and not isinstance(x, np.ndarray)):
        x = _numbers(array_of(x, name), x, name)
    try:
        given = np.asarray(x)
    except ValueError:
        raise ValueError(f"{name} has rows of different lengths; expected one length") from None
    if given.dtype.kind not in "iu" and given.size:
        raise TypeError(f"{name} is {given.dtype}; expected int32")
    if given.ndim != len(shape) or any(n not in (m, -1) for n, m in zip(shape, given.shape)):  # noqa: B905
        expected = ", ".join("any" if n < 0 else str(n) for n in shape)
        raise ValueError(f"{name} has the shape {given.shape}; expected ({expected})")
    limits = np.iinfo(np.int32)
    if given.dtype != np.int32 and given.size:
        for extreme in (int(given.min()), int(given.max())):
            if not limits.min <= extreme <= limits.max:
                raise ValueError(f"{name} has {extreme}; expected numbers of 32 bits")
    return np.ascontiguousarray(given, np.int32)


def is_torch(x: object) -> bool:
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    return torch is not None and isinstance(x, torch.Tensor)


def new_like(x: object, shape: Sequence[int], dtype: str, zeros: bool) -> Any:
    """A new array for results: a tensor if x is one of PyTorch, else a NumPy array."""
    if is_torch(x):
        torch = sys.modules["torch"]
        make = torch.zeros if zeros else torch.empty
        return make(tuple(shape), dtype=getattr(torch, dtype), device="cpu")
    return (np.zeros if zeros else np.empty)(tuple(shape), _numpy_dtype(dtype))


def dtype_name(dtype: object, name: str) -> str:
    """The name of a type of NumPy, ml_dtypes or PyTorch, or of what NumPy takes for one. Raises
    TypeError, by that name, for anything else."""
    text = str(dtype)
    if text.startswith("torch."):
        return text.removeprefix("torch.")
    try:
        return np.dtype(dtype).name  # type: ignore[call-overload, no-any-return]
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {dtype!r}; expected a type of numbers") from None


def _numpy_dtype(name: str) -> np.dtype[Any]:
    if name in ("float32", "float16"):
        return np.dtype(name)
    try:
        found: np.dtype[Any] = np.dtype(getattr(importlib.import_module("ml_dtypes"), name))
        return found
    except ImportError:
        raise ImportError(
            f"the result is {name}, for which NumPy needs ml_dtypes: pip install ml_dtypes"
        ) from None


def _of_numpy(x: np.ndarray[Any, Any], name: str) -> Array:
    if not x.dtype.isnative:  # its name is that of the native type
        raise TypeError(f"{name} is {x.dtype.str}; expected numbers in this machine's byte order")
    size = max(x.itemsize, 1)
    if any(stride % size for stride in x.strides):
        raise ValueError(f"{name} has strides of {x.strides} bytes; expected multiples of {size}")
    strides = tuple(stride // size for stride in x.strides)
    return Array(x, x.ctypes.data, x.dtype.name, x.shape, strides, x.flags.writeable)


def _of_torch(x: Any, name: str) -> Array:
    torch = sys.modules["torch"]
    if x.device.type != "cpu":
        raise ValueError(f"{name} is on {x.device}; expected memory of the CPU: {name}.cpu()")
    if x.layout != torch.strided:
        raise ValueError(f"{name} is {x.layout}; expected a dense tensor")
    if x.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            f"{name} requires a gradient, and there is only the forward pass: call under "
            "torch.no_grad()"
        )
    if x.is_neg() or x.is_conj():  # the memory has other numbers
        raise ValueError(f"{name} is a lazy view; expected {name}.resolve_neg().resolve_conj()")
    return Array(x, x.data_ptr(), dtype_name(x.dtype, name), tuple(x.shape), tuple(x.stride()))


# ---- DLPack, as dlpack.h has it ------------------------------------------------------------------

_CPU = 1
_DLPACK_TYPES = {
    **{(0, bits): f"int{bits}" for bits in (8, 16, 32, 64)},
    **{(1, bits): f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{(2, bits): f"float{bits}" for bits in (16, 32, 64)},
    (4, 16): "bfloat16",
    (10, 8): "float8_e4m3fn",
}
"""By code and bits."""


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def _of_dlpack(x: Any, name: str) -> Array:
    device = x.__dlpack_device__()[0]
    if device != _CPU:
        raise ValueError(f"{name} is on DLPack's device {int(device)}; expected {_CPU}, the CPU")
    capsule = x.__dlpack__()
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    try:
        t = _DLTensor.from_address(pointer(capsule, b"dltensor"))
    except ValueError:
        raise TypeError(
            f"{name}.__dlpack__() gives {capsule!r}; expected a DLPack tensor"
        ) from None
    if t.lanes != 1:
        raise TypeError(f"{name} has elements of {t.lanes} numbers; expected one each")
    shape = tuple(t.shape[: t.ndim])
    if t.strides:
        strides = tuple(t.strides[: t.ndim])
    else:  # contiguous
        strides = tuple(int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(t.ndim))
    dtype = _DLPACK_TYPES.get((t.code, t.bits), f"DLPack's type {t.code} of {t.bits} bits")
    # The capsule, which nobody else takes over, frees what it holds when it goes.
    return Array((x, capsule), (t.data or 0) + t.byte_offset, dtype, shape, strides)


def _numbers(array: Array, x: Any, name: str) -> NDArray[Any]:
    """A view of integers that are not NumPy's."""
    if not array.dtype.startswith(("int", "uint")):
        raise TypeError(f"{name} is {array.dtype}; expected int32")
    return np.from_dlpack(x.detach() if is_torch(x) else x)
