"""A base class for objects that hold files, threads or memory until they are closed."""

import warnings
from types import TracebackType
from typing import Any, Self

__all__ = ["Closing"]


class Closing:
    """with SomethingClosing(...) as it: ...

    A subclass sets `closed` to False once it holds something, and gives it back in `release`, which
    is called once. An object that is dropped while open is closed when it is collected, with a
    ResourceWarning. While `closed` is True, as after a constructor that failed early, nothing is
    released.
    """

    closed = True

    def release(self) -> None:
        """Give everything back. It must also work while the interpreter shuts down."""
        raise NotImplementedError

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # The interpreter clears the names of modules at its shutdown; default arguments stay.
    def __del__(self, warn: Any = warnings.warn, category: Any = ResourceWarning) -> None:
        if self.closed:
            return
        try:
            warn(f"{self!r} was dropped without close()", category, source=self)
        finally:
            self.close()
