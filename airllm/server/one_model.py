"""The only model of a server: loaded at the start, it answers whatever name it is given."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from airllm.server.engine_thread import EngineThread
from airllm.server.models import ListedModel, Models
from airllm.server.served_model import ServedModel

__all__ = ["OneModel"]


class OneModel(Models):
    """engine: the thread on which it runs. While it is being loaded, requests get the status 503
    at once; if it cannot be loaded, the server ends."""

    are_several = False

    def __init__(self, open_model: Callable[[], ServedModel]) -> None:
        """open_model: called on the engine's thread."""
        self._on_end: Callable[[], None] = lambda: None
        self.engine = EngineThread(open_model, lambda: self._on_end())

    def start(self, on_end: Callable[[], None] = lambda: None) -> None:
        self._on_end = on_end
        self.engine.start()

    async def ready(self) -> Sequence[ListedModel]:
        await asyncio.to_thread(self.engine.wait_until_open)
        return await self.listed()

    def check(self) -> None:
        """ApiError while the model is being loaded."""
        _ = self.engine.model

    async def close(self) -> None:
        await asyncio.to_thread(self.engine.close)

    @property
    def error(self) -> BaseException | None:
        return self.engine.error

    @asynccontextmanager
    async def use(self, name: str, keep_alive: float | None = None) -> AsyncIterator[EngineThread]:
        _ = self.engine.model  # ApiError while it is being loaded
        yield self.engine

    async def listed(self) -> Sequence[ListedModel]:
        model = self.engine.model
        n_bytes = int(model.facts.get("bytes", 0))
        found = ListedModel(model.name, "loaded", n_bytes, None, model.context, model.facts, model)
        return [found]

    async def find(self, name: str) -> ListedModel:
        return (await self.listed())[0]

    async def unload(self, name: str) -> str:
        return self.engine.model.name  # the server has no other: it stays

    @property
    def loaded(self) -> Sequence[ServedModel]:
        model = self.engine.model_or_none
        return [] if model is None else [model]
