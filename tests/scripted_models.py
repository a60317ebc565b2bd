"""Models that load when a test lets them, for a server without files."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from scripted_server import TEMPLATE, Client, Response, Say, ScriptedEngine, scripted_model

from airllm.server.loaded_models import LoadedModels
from airllm.server.model_catalog import ModelNeeds, ModelSource
from airllm.server.served_model import ServedModel
from airllm.server.service import Service
from airllm.server.settings import ServerSettings

_Result = TypeVar("_Result")


@dataclass
class Scripted:
    """A model of n_bytes. error: of its load; header_error: of its header. may_load: the load waits
    for it. n_loads: how often it was loaded."""

    id: str
    n_bytes: int = 1
    says: Sequence[Say | str] = ("Hello.",)
    error: Exception | None = None
    header_error: Exception | None = None
    may_load: threading.Event = field(default_factory=threading.Event)
    version: int = 0
    n_loads: int = 0
    n_loaded: int = 0  # now
    engine: ScriptedEngine = field(init=False)

    def __post_init__(self) -> None:
        self.may_load.set()
        self.engine = ScriptedEngine(*self.says)

    def source(self) -> ModelSource:
        return ModelSource(self.id, self.version, 10 * self.n_bytes, 1e9, self._needs, self._open)

    def _needs(self) -> ModelNeeds:
        if self.header_error is not None:
            raise self.header_error
        return ModelNeeds(self.n_bytes, 4096, {"family": "llama"})

    def _open(self, needs: ModelNeeds) -> ServedModel:
        self.n_loads += 1
        assert self.may_load.wait(30)
        if self.error is not None:
            raise self.error
        self.n_loaded += 1
        self.engine = ScriptedEngine(*self.says)
        model = scripted_model(self.engine, TEMPLATE)
        return replace(model, name=self.id, close=self._closed)

    def _closed(self) -> None:
        self.n_loaded -= 1


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def loaded_models(*models: Scripted, **options: Any) -> LoadedModels:
    """budget: by default one byte, for one model at a time."""
    find = options.pop("find", lambda: [model.source() for model in models])
    return LoadedModels(find, **{"budget": 1, **options})


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """A test on an event loop of its own."""
    asyncio.run(asyncio.wait_for(test(), 30))


async def until(condition: Callable[[], object]) -> None:
    """Let the loop and the threads go on until something is so."""
    while not condition():
        await asyncio.sleep(0.001)


class ManyClient(Client):
    """Calls a server of several models, from any thread; all calls are on one event loop.

    with ManyClient(Scripted("a"), Scripted("b")) as client: client.post(...)
    """

    def __init__(self, *models: Scripted, options: dict[str, Any] | None = None, **settings: Any):
        super().__init__(**settings)
        self.scripted = {model.id: model for model in models}
        self._options = options or {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._own = ServerSettings(**settings)

    def __enter__(self) -> "ManyClient":
        self._thread.start()

        async def begin() -> None:
            self.many = loaded_models(*self.scripted.values(), **self._options)
            self.service = Service(self.many, self._own)
            await self.many.ready()

        self.do(begin())
        return self

    def __exit__(self, *_: object) -> None:
        for model in self.scripted.values():
            model.may_load.set()
            model.engine.go.set()
        self.do(self.many.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def do(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def call(self, method: str, path: str, body: bytes = b"", *args: Any, **more: Any) -> Response:
        wanted = {
            "headers": (),
            "leaves": False,
            "leaves_after": None,
            "takes": lambda piece: True,
            **more,
        }
        return self.do(self._call(method, path, body, **wanted))
