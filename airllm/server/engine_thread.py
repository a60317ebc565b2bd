"""The one thread on which the model runs."""

import logging
import threading
from collections.abc import Callable

from airllm.server.errors import ApiError
from airllm.server.served_model import ServedModel

__all__ = ["EngineThread"]

_log = logging.getLogger("airllm")


class EngineThread:
    """Opens the model and runs its scheduler, both on a thread of its own."""

    def __init__(
        self, open_model: Callable[[], ServedModel], on_end: Callable[[], None] = lambda: None
    ) -> None:
        """open_model: called on the thread. on_end: called there when the thread ends, for whatever
        reason."""
        self._open, self._on_end = open_model, on_end
        self._thread = threading.Thread(target=self._run, name="airllm-engine", daemon=True)
        self._model: ServedModel | None = None
        self._opened = threading.Event()  # or failed
        self._told = threading.Event()  # those who wait for that, also if nobody will know
        self._wants_end = False
        self.error: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    @property
    def model(self) -> ServedModel:
        """ApiError with the status 503 while the model is being opened, and after the end."""
        if self._model is None:
            text = "the model has gone" if self._opened.is_set() else "the model is being loaded"
            raise ApiError(503, text, code="loading", retry_after=2)
        return self._model

    @property
    def model_or_none(self) -> ServedModel | None:
        """None where `model` raises."""
        return self._model

    @property
    def is_ending(self) -> bool:
        """Whether requests fail because the server ends, or because the engine has failed."""
        return self._wants_end or self.error is not None

    def wait_until_open(self) -> ServedModel:
        """Raises the error if the model cannot be opened, or is not waited for any more."""
        self._told.wait()
        if self.error is not None:
            raise self.error
        return self.model

    def close(self, *, drain: bool = False) -> None:
        """End the scheduler and the thread. drain: after the requests that run or wait.

        A load that is under way, which may take minutes, is not waited for: the thread closes the
        model once it is open, or ends with the process.
        """
        self._wants_end = True
        if not self._opened.is_set():
            self._told.set()
            return
        if self._model is not None:
            self._model.scheduler.close(drain=drain)
        self._thread.join()

    def _run(self) -> None:
        try:
            model = self._open()
            self._model = model
            self._opened.set()
            self._told.set()
            try:
                if not self._wants_end:
                    model.scheduler.serve_forever()
            finally:
                self._model = None
                model.close()
        except BaseException as error:
            _log.debug("the engine's thread has failed", exc_info=True)
            if not self._wants_end:
                self.error = error
        finally:
            self._opened.set()
            self._told.set()
            self._on_end()
