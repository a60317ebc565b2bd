"""Loads models when they are used, and unloads them when others need their memory.

All models share one budget. Each takes what it needs to run in memory, or all of the budget if it
needs more, and is then streamed; so how a model runs does not depend on which others are loaded.
Requests wait in one queue. The first one whose model is not loaded is the next to be served: for
it, models on which nothing runs are unloaded, the least recently used first. A model on which
something runs is never unloaded.

airllm.server.model_slots says when a model makes way.

All state belongs to the event loop's thread, which alone changes it.
"""

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from airllm.engine.requests import QueueFullError
from airllm.server.engine_thread import EngineThread
from airllm.server.model_catalog import Catalog, ModelSource
from airllm.server.model_errors import LoadError, ModelBusyError, UnknownModelError
from airllm.server.model_slots import Slot, victims
from airllm.server.models import ListedModel, Models
from airllm.server.served_model import ServedModel
from airllm.util.errors import AirllmError
from airllm.util.printable import printable
from airllm.util.system import give_back_memory

__all__ = ["LoadedModels"]

_log = logging.getLogger("airllm")

# Models whose headers are read for lists before anybody uses them (0.1 s each), and how long a list
# waits for that.
MOST_DESCRIBED, DESCRIBE_SECONDS = 100, 1.0
RETRY_SECONDS = 10.0  # after a load that failed, in which its error is the answer


@dataclass(eq=False)
class _Waiter:
    slot: Slot
    since: float
    granted: asyncio.Future[EngineThread]


class LoadedModels(Models):
    are_several = True

    def __init__(
        self,
        find: Callable[[], Sequence[ModelSource]],
        *,
        budget: int | None = None,
        default: str | None = None,
        aliases: Mapping[str, str] | None = None,
        keep_alive: float | None = None,
        queue_length: int = 256,
        queue_seconds: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """find, default, aliases: see Catalog. budget: bytes for all models together; None: no
        bound. keep_alive: seconds after which a model that is not used is unloaded; None: when its
        memory is needed. queue_length, queue_seconds: how many requests may wait for models to be
        loaded, and how long."""
        self._catalog = Catalog(find, default, aliases or {})
        self._default, self._budget, self._keep_alive = default, budget, keep_alive
        self._queue_length, self._queue_seconds = queue_length, queue_seconds
        self._clock = clock
        self._slots: dict[str, Slot] = {}
        self._there: list[Slot] = []  # that are loaded, or are being loaded or unloaded
        self._compared: object = None
        self._queue: list[_Waiter] = []
        self._changing: asyncio.Task[None] | None = None  # a load or an unload
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._describing: asyncio.Task[None] | None = None
        self._preloading: asyncio.Task[None] | None = None

    # ---- for the server ------------------------------------------------------------------------

    def start(self, on_end: Callable[[], None]) -> None:
        """Nothing ends the server but `close`."""

    @property
    def error(self) -> BaseException | None:
        return None

    async def ready(self) -> Sequence[ListedModel]:
        """The default model, if there is one, is loaded from now on."""
        listed = await self.listed()
        if self._default is not None:
            self._preloading = asyncio.create_task(self._preload(self._default))
        return listed

    async def _preload(self, name: str) -> None:
        with suppress(AirllmError):  # which the log has
            async with self.use(name):
                pass

    def check(self) -> None:
        """Requests wait for their models."""

    async def close(self) -> None:
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        for waiter in self._queue:
            waiter.granted.cancel()
        for slot in list(self._there):
            if slot.engine is not None:
                await asyncio.to_thread(slot.engine.close)
        for task in (self._changing, self._describing, self._preloading):
            if task is not None:
                await asyncio.gather(task, return_exceptions=True)

    @asynccontextmanager
    async def use(self, name: str, keep_alive: float | None = None) -> AsyncIterator[EngineThread]:
        slot = await self._slot(name)
        engine = await self._granted(slot)
        slot.keep_alive = self._keep_alive if keep_alive is None else _seconds(keep_alive)
        try:
            yield engine
        finally:
            self._give_back(slot)

    async def listed(self) -> Sequence[ListedModel]:
        await self._catalog.look()
        self._compare()
        if self._describing is not None:
            await asyncio.wait({self._describing}, timeout=DESCRIBE_SECONDS)
        return [self._listed(slot) for slot in self._slots.values() if not slot.is_wrong]

    async def find(self, name: str) -> ListedModel:
        return self._listed(await self._slot(name))

    async def unload(self, name: str) -> str:
        slot = await self._slot(name)
        slot.is_unwanted = slot.state in ("loading", "loaded")
        self._go_on()
        return slot.source.id

    @property
    def loaded(self) -> Sequence[ServedModel]:
        engines = [slot.engine for slot in self._there if slot.engine is not None]
        return [model for engine in engines if (model := engine.model_or_none) is not None]

    # ---- names and files -----------------------------------------------------------------------

    async def _slot(self, name: str) -> Slot:
        source = await self._catalog.source(name)
        self._compare()
        slot = self._slots.get(source.id)
        if slot is None:  # its files have gone meanwhile
            raise UnknownModelError(name, list(self._slots))
        return slot

    def _compare(self) -> None:
        """Take over what the catalog has found."""
        if self._compared is self._catalog.sources:
            return
        self._compared = self._catalog.sources
        before, self._slots = self._slots, {}
        for id, source in self._catalog.sources.items():
            slot = self._slots[id] = before.pop(id) if id in before else Slot(source)
            if slot.source.version != source.version:
                slot.needs = slot.failed = None
                slot.is_unwanted = slot.state != "unloaded"
            slot.source = source
        for id, slot in before.items():
            if slot.state != "unloaded" or any(waiter.slot is slot for waiter in self._queue):
                slot.is_unwanted = slot.state != "unloaded"
                self._slots[id] = slot  # until it is unloaded
        if self._describing is None:
            self._describing = asyncio.create_task(self._describe())
        self._go_on()

    async def _describe(self) -> None:
        """Read the headers of models, for lists, and to log which files are wrong."""
        try:
            for slot in list(self._slots.values())[:MOST_DESCRIBED]:
                if slot.needs is None and slot.failed is None and not self._closing:
                    await self._read_needs(slot)
        finally:
            self._describing = None

    def _listed(self, slot: Slot) -> ListedModel:
        model = None if slot.engine is None else slot.engine.model_or_none
        needs, source = slot.needs, slot.source
        idle_until = slot.idle_until
        if idle_until is not None:  # another clock
            idle_until = time.time() + max(0.0, idle_until - self._clock())
        return ListedModel(
            source.id,
            slot.state,
            source.n_bytes,
            source.modified,
            None if needs is None else needs.context,
            {} if needs is None else needs.facts,
            model,
            idle_until,
            self._catalog.names.aliases_of(source.id),
        )

    # ---- the queue -----------------------------------------------------------------------------

    async def _granted(self, slot: Slot) -> EngineThread:
        """Wait until the model may be used; it is then in use."""
        future: asyncio.Future[EngineThread] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(slot, self._clock(), future)
        self._queue.append(waiter)
        try:
            self._go_on()
            if len(self._queue) > self._queue_length:
                raise QueueFullError(f"{self._queue_length} requests wait for models already")
            async with asyncio.timeout(self._queue_seconds):
                return await future
        except BaseException as error:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._give_back(slot)  # it was granted to one who had left
            if isinstance(error, TimeoutError):
                raise ModelBusyError(
                    f"{slot.source.id} could not be loaded within {self._queue_seconds:g} s: other "
                    "models are busy, and have the memory"
                ) from None
            raise
        finally:
            future.cancel()
            if waiter in self._queue:
                self._queue.remove(waiter)
                self._go_on()

    def _give_back(self, slot: Slot) -> None:
        slot.n_uses -= 1
        slot.used = self._clock()
        self._go_on()

    def _go_on(self) -> None:
        """Do all that can be done now. Called after whatever might have changed that."""
        if self._closing:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        first: _Waiter | None = None
        yielding: list[Slot] = []
        for waiter in list(self._queue):
            slot = waiter.slot
            if waiter.granted.done():
                continue  # its client has left; it removes itself
            if (failed := self._recent_failure(slot)) is not None:
                self._queue.remove(waiter)
                waiter.granted.set_exception(failed)
            elif slot.is_open and slot not in yielding:
                self._queue.remove(waiter)
                self._grant(waiter)
            elif first is None:
                first = waiter
                yielding = [
                    one
                    for one in self._victims(slot)
                    if self._clock() >= one.turn_ends(waiter.since)
                ]
        if self._changing is None:
            if (slot_to_drop := self._unwanted()) is not None:
                self._change(self._unload([slot_to_drop]))
            elif first is not None:
                self._make_way(first)
        self._wake_for_keep_alive()

    def _grant(self, waiter: _Waiter) -> None:
        slot, engine = waiter.slot, waiter.slot.engine
        assert engine is not None  # of a slot that is open
        slot.n_uses += 1
        slot.used = self._clock()
        waiter.granted.set_result(engine)

    def _recent_failure(self, slot: Slot) -> LoadError | None:
        if slot.failed is None:
            return None
        error, when = slot.failed
        return error if self._clock() < when + RETRY_SECONDS else None

    # ---- what to load and to unload ------------------------------------------------------------

    def _make_way(self, first: _Waiter) -> None:
        """Load the model of the first that waits, after others have made way."""
        slot = first.slot
        if slot.state != "unloaded":
            return
        if slot.needs is None:  # known before anything makes way for a file that is damaged
            self._change(self._read_needs(slot))
            return
        making_way = self._victims(slot)
        if any(one.n_uses for one in making_way):
            return  # until they end
        now = self._clock()
        wait = max((one.stays_until(first.since) - now for one in making_way), default=0.0)
        if wait > 0.0:
            self._wake_in(wait)
        elif making_way:
            self._change(self._unload(making_way))
        else:
            self._change(self._load(slot))

    def _victims(self, slot: Slot) -> list[Slot]:
        if slot.needs is None or slot.state != "unloaded":
            return []
        return victims(self._there, slot.needs.n_bytes, self._budget)

    def _unwanted(self) -> Slot | None:
        """A model that is to be unloaded, whoever waits."""
        now = self._clock()
        for slot in self._there:
            due = slot.idle_until
            if slot.is_idle and (slot.is_unwanted or (due is not None and now >= due)):
                return slot
        return None

    def _wake_for_keep_alive(self) -> None:
        idle = [slot for slot in self._there if slot.is_idle]
        due = [slot.idle_until for slot in idle if slot.idle_until is not None]
        if due:
            self._wake_in(min(due) - self._clock())

    def _wake_in(self, seconds: float) -> None:
        """Go on after so many seconds, or earlier."""
        loop = asyncio.get_running_loop()
        when = loop.time() + max(seconds, 0.001)
        if self._timer is None or when < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(when, self._go_on)

    # ---- loading and unloading -----------------------------------------------------------------

    def _change(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin a load or an unload; there is one at a time."""

        async def run() -> None:
            try:
                await work
            finally:
                self._changing = None
                self._go_on()

        self._changing = asyncio.create_task(run())

    async def _read_needs(self, slot: Slot) -> None:
        source = slot.source
        try:
            needs = await asyncio.to_thread(source.needs)
        except Exception as error:
            self._has_failed(slot, source, error)
        else:
            if slot.source is source:
                slot.needs = needs

    async def _load(self, slot: Slot) -> None:
        source, needs = slot.source, slot.needs
        assert needs is not None
        slot.state, slot.n_bytes = "loading", needs.n_bytes
        self._there.append(slot)
        slot.engine = engine = EngineThread(lambda: source.open(needs), self._watch(slot))
        began = self._clock()
        engine.start()
        try:
            await asyncio.to_thread(engine.wait_until_open)
        except Exception as error:
            self._is_gone(slot)
            self._has_failed(slot, source, error)
            return
        slot.state, slot.loaded, slot.failed = "loaded", self._clock(), None
        slot.used, slot.load_seconds = slot.loaded, slot.loaded - began
        slot.keep_alive = self._keep_alive
        _log.info("%s has been loaded in %.1f s", printable(source.id), slot.load_seconds)

    def _watch(self, slot: Slot) -> Callable[[], None]:
        """What the engine's thread calls at its end, which is an error unless it was closed."""
        loop = asyncio.get_running_loop()

        def ended() -> None:
            with suppress(RuntimeError):  # the loop may have ended
                loop.call_soon_threadsafe(self._engine_ended, slot)

        return ended

    def _engine_ended(self, slot: Slot) -> None:
        if slot.state == "loaded" and slot.engine is not None and slot.engine.error is not None:
            slot.is_unwanted = True
            self._has_failed(slot, slot.source, slot.engine.error)
            self._go_on()

    async def _unload(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            engine, slot.engine = slot.engine, None
            slot.state = "unloading"
            if engine is not None:
                await asyncio.to_thread(_end, engine)
            self._is_gone(slot)
            _log.info("%s has been unloaded", printable(slot.source.id))
            if slot.source.id not in self._catalog.sources:
                self._slots.pop(slot.source.id, None)

    def _is_gone(self, slot: Slot) -> None:
        slot.state, slot.engine, slot.n_bytes, slot.is_unwanted = "unloaded", None, 0, False
        self._there.remove(slot)

    def _has_failed(self, slot: Slot, source: ModelSource, error: BaseException) -> None:
        if slot.source is source and not self._closing:
            text = f"{source.id} cannot be loaded: "
            slot.failed = LoadError(text + _without(source.folder, str(error))), self._clock()
            _log.warning("%s", printable(f"{text}{error}"))


def _without(folder: str, text: str) -> str:
    return text.replace(f"{folder}/", "") if folder else text


def _end(engine: EngineThread) -> None:
    try:
        engine.close()
    except Exception:
        _log.exception("a model did not end as it should")
    gc.collect()  # what refers to itself would keep its memory
    give_back_memory()


def _seconds(keep_alive: float) -> float | None:
    return None if keep_alive < 0 else keep_alive
