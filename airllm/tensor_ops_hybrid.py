"""The operations: from the C++ extension if it runs, otherwise from NumPy.

The environment variable AIRLLM_BACKEND decides, once, at the first import:

    auto    (or unset) C++ if it imports, otherwise NumPy; a fallback is logged with its reason
    cpp     C++; if it does not import, an ImportError gives the reason
    numpy   NumPy

All names of `airllm.numpy_ops.__all__` are here, with the same signatures on both backends. A call
that does not fit the signature is a TypeError that shows it.
"""

import functools
import importlib
import inspect
import logging
import os
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from airllm import numpy_ops

_EXTENSION = "tensor_ops_cpp"
_CHOICES = ("auto", "cpp", "numpy")
_BUILD = "Build it with `python -m pip install .` in a clone of the project"


def _requested() -> str:
    requested = os.environ.get("AIRLLM_BACKEND", "") or "auto"
    if requested not in _CHOICES:
        raise ValueError(f'AIRLLM_BACKEND is "{requested}"; expected {" or ".join(_CHOICES)}.')
    return requested


def _load_extension() -> ModuleType:
    """The extension. Raises ImportError with the reason if it is missing, broken or outdated."""
    try:
        extension = importlib.import_module(_EXTENSION)
    except ModuleNotFoundError as error:
        if error.name == _EXTENSION:
            raise ModuleNotFoundError(f"{_EXTENSION} is not installed", name=_EXTENSION) from error
        raise ImportError(f"{_EXTENSION} does not import: {error}") from error
    except Exception as error:  # a broken binary may raise anything
        raise ImportError(f"{_EXTENSION} does not import: {error}") from error
    missing = [name for name in numpy_ops.__all__ if not hasattr(extension, name)]
    if missing:
        raise ImportError(
            f"{_EXTENSION} lacks {', '.join(missing)}: it was built from another version"
        )
    return extension


def _choose(requested: str) -> tuple[ModuleType, str | None]:
    """The backend's module, and the reason for a fallback to NumPy, or None."""
    if requested == "numpy":
        return numpy_ops, None
    try:
        return _load_extension(), None
    except ImportError as error:
        # A user who names an ISA wants that ISA, not NumPy at a hundredth of its speed.
        isa_named = bool(os.environ.get("TENSOR_OPS_ISA"))
        if requested == "cpp" or (isa_named and not isinstance(error, ModuleNotFoundError)):
            raise ImportError(
                f"{error}. {_BUILD}, or set AIRLLM_BACKEND=numpy to run without it."
            ) from error
        logging.getLogger("airllm").warning(
            "%s. Running on NumPy, many times slower. %s, or set AIRLLM_BACKEND=numpy to silence "
            "this.",
            error,
            _BUILD,
        )
        return numpy_ops, str(error)


_requested_backend = _requested()
_ops, _fallback_reason = _choose(_requested_backend)

backend = "numpy" if _ops is numpy_ops else "cpp"


def _described(name: str) -> Callable[..., Any]:
    """The backend's function with a signature that `inspect` and editors can read, which functions
    of an extension do not have. It costs some 0.3 µs a call."""
    operation: Callable[..., Any] = getattr(_ops, name)
    signature = inspect.signature(getattr(numpy_ops, name))

    @functools.wraps(getattr(numpy_ops, name))
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return operation(*arguments, **named)
        except TypeError:
            fault = _fault_of_call(signature, arguments, named)
            if fault is None:
                raise
        # Outside of the `except`: the backend's own words would only be in the way.
        raise TypeError(f"{name}: {fault}; expected {name}{_without_types(signature)}")

    call.__module__, call.__doc__ = __name__, operation.__doc__
    return call


def _fault_of_call(
    signature: inspect.Signature, arguments: tuple[Any, ...], named: dict[str, Any]
) -> str | None:
    """What does not fit the signature; None if all does, and the fault is elsewhere."""
    if "axis" in named and "axis" not in signature.parameters:
        return "there is no argument 'axis': the last axis is the feature axis"
    try:
        signature.bind(*arguments, **named)
    except TypeError as error:
        return str(error)
    return None


def _without_types(signature: inspect.Signature) -> inspect.Signature:
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return signature.replace(parameters=bare, return_annotation=signature.empty)


if TYPE_CHECKING:
    from airllm.numpy_ops import *  # noqa: F403
else:
    # has_simd and simd_level are left to __getattr__: the extension can change its ISA.
    for _name in numpy_ops.__all__:
        if inspect.isfunction(getattr(numpy_ops, _name)):
            globals()[_name] = _described(_name)
        elif "simd" not in _name:
            globals()[_name] = getattr(_ops, _name)

__all__ = ["backend", "get_backend_info", "print_backend_info"]
__all__ += numpy_ops.__all__


def __getattr__(name: str) -> Any:
    if name in numpy_ops.__all__:
        return getattr(_ops, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def get_backend_info() -> dict[str, Any]:
    """The backend in use, and the reason for it.

    backend: "cpp" or "numpy"; requested: the value of AIRLLM_BACKEND, or "auto"; fallback_reason:
    why the extension was wanted but is not used, or None; has_simd, simd_level, available_isas,
    threads, cpu_budget, optimization: from the backend; numpy: the version of NumPy.
    """
    return {
        "backend": backend,
        "requested": _requested_backend,
        "fallback_reason": _fallback_reason,
        "has_simd": _ops.has_simd,
        "simd_level": _ops.simd_level,
        "available_isas": _ops.available_isas(),
        "threads": _ops.get_num_threads(),
        "cpu_budget": _ops.cpu_budget(),
        "optimization": _ops.get_optimization_info(),
        "numpy": np.__version__,
    }


def print_backend_info() -> None:
    """Prints get_backend_info to stdout, one line for each entry."""
    for key, value in get_backend_info().items():
        print(f"{key + ':':<17}{value}")
