"""What holds files, threads or memory until it is closed."""

import warnings
from types import TracebackType
from typing import Any, Self

__all__ = ["Closing"]


class Closing:
    """with SomethingClosing(...) as it: ...

    A class sets `closed` to False where it has something to give back, and gives it back in
    `release`, which is called once. An object that is dropped open is closed when it is collected,
    with a ResourceWarning. Until `closed` is False, in a constructor that failed say, nothing is.
    """

    closed = True

    def release(self) -> None:
        """Give everything back. Must bear an interpreter that is shutting down."""
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

    # At its shutdown the interpreter takes a module's names away: these two stay.
    def __del__(self, warn: Any = warnings.warn, category: Any = ResourceWarning) -> None:
        if self.closed:
            return
        try:
            warn(f"{self!r} was dropped without close()", category, source=self)
        finally:
            self.close()
