"""The models of a server as the rest of it sees them: used by name, listed, loaded and unloaded."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

from airllm.server.engine_thread import EngineThread
from airllm.server.served_model import ServedModel

__all__ = ["ListedModel", "ModelState", "Models"]

ModelState = Literal["unloaded", "loading", "loaded", "unloading"]


@dataclass(frozen=True)
class ListedModel:
    """id: the name for clients. modified: seconds since 1970. context: None while nobody knows.
    facts: see ServedModel. model: of a model that is loaded. idle_until: by time.time(), when it is
    unloaded unless it is used before; None: whenever its memory is needed. aliases: further names,
    see ModelNames."""

    id: str
    state: ModelState
    n_bytes: int = 0
    modified: float | None = None
    context: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    model: ServedModel | None = None
    idle_until: float | None = None
    aliases: tuple[str, ...] = ()


class Models(ABC):
    """Its methods are for the event loop's thread.

    are_several: whether requests choose among models by their names.
    """

    are_several: bool

    @abstractmethod
    def start(self, on_end: Callable[[], None]) -> None:
        """on_end: called in any thread if the server cannot go on; `error` then says why."""

    @abstractmethod
    async def ready(self) -> Sequence[ListedModel]:
        """Wait until requests can be answered. The models that there are."""

    @abstractmethod
    def check(self) -> None:
        """Raises what keeps requests from being answered now."""

    @abstractmethod
    async def close(self) -> None:
        """End all that runs, and free the memory."""

    @property
    @abstractmethod
    def error(self) -> BaseException | None:
        """Why the server cannot go on."""

    @abstractmethod
    def use(
        self, name: str, keep_alive: float | None = None
    ) -> AbstractAsyncContextManager[EngineThread]:
        """A model for the length of the `async with`, once it is loaded. keep_alive: seconds that
        it then stays loaded unused; None for the server's own choice.

        UnknownModelError, UnnamedModelError, LoadError, ModelBusyError, QueueFullError.
        """

    @abstractmethod
    async def listed(self) -> Sequence[ListedModel]:
        """All models, in a stable order."""

    @abstractmethod
    async def find(self, name: str) -> ListedModel:
        """A model, without loading it. UnknownModelError, UnnamedModelError."""

    @abstractmethod
    async def unload(self, name: str) -> str:
        """Unload a model as soon as nothing runs on it. Returns its id. Errors as `find`."""

    @property
    @abstractmethod
    def loaded(self) -> Sequence[ServedModel]:
        """The models that are loaded now."""
