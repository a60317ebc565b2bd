"""Runs a benchmark in a separate process.

BLAS libraries and OpenMP read the number of threads when they are loaded, so each number of threads
needs a new process.
"""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


class FailedError(Exception):
    """A benchmark ended without its results; the message says why."""


# The variables that set the threads of NumPy's and PyTorch's libraries and of the extension.
THREAD_VARIABLES = (
    *("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
    "TENSOR_OPS_NUM_THREADS",
)


def run_script(main: Callable[[], int]) -> NoReturn:
    """End the program with main's status, or with the message of a FailedError."""
    try:
        sys.exit(main())
    except FailedError as error:
        sys.exit(str(error))


def iterate(function: Callable[..., Iterator[T]], *arguments: Any, threads: int) -> Iterator[T]:
    """Yields what the generator function(*arguments) yields in a new process with so many threads.

    Raises FailedError, with the traceback or exit status of the process, if it fails.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments), daemon=True)
    with _environment(dict.fromkeys(THREAD_VARIABLES, str(threads))):
        process.start()
    sender.close()  # the process now holds the only end, so recv fails if it dies
    try:
        while True:
            try:
                kind, value = receiver.recv()
            except EOFError:
                process.join()
                raise FailedError(f"a benchmark died with status {process.exitcode}") from None
            if kind == "failed":
                raise FailedError(f"a benchmark failed: {value}")
            if kind == "done":
                return
            yield value
    finally:
        process.terminate()
        process.join()


def _send(
    sender: Connection, function: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]
) -> None:
    try:
        for value in function(*arguments):
            sender.send(("value", value))
        sender.send(("done", None))
    except FailedError as error:
        sender.send(("failed", str(error)))
    except Exception:
        sender.send(("failed", traceback.format_exc()))


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
