"""Which models there are: looked for in folders, and found by the names that clients give."""

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airllm.server.model_errors import UnknownModelError, UnnamedModelError
from airllm.server.model_names import ModelNames
from airllm.server.served_model import ServedModel

__all__ = ["Catalog", "ModelNeeds", "ModelSource"]

_log = logging.getLogger("airllm")

# Clients that list the models again and again make the server look this often.
# Ten thousand files take a second: the next look is LOOK_TIMES as long away.
LOOK_SECONDS, LOOK_TIMES = 1.0, 10.0


@dataclass(frozen=True)
class ModelNeeds:
    """What a model takes, as its header says. n_bytes: of memory. context: tokens. facts: see
    ServedModel."""

    n_bytes: int
    context: int
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSource:
    """A model that can be loaded.

    id: the name for clients. version: differs once the files have changed. n_bytes, modified: of
    the files; in seconds since 1970. needs: reads the header. open: loads the model. Both raise
    ValueError or OSError for files that are wrong. aliases: further names. folder: of the files,
    which errors name and clients need not know.
    """

    id: str
    version: Hashable
    n_bytes: int
    modified: float
    needs: Callable[[], ModelNeeds]
    open: Callable[[ModelNeeds], ServedModel]
    aliases: tuple[str, ...] = ()
    folder: str = ""


class Catalog:
    """The models that `find` finds, looked for again when somebody lists them or names one that is
    not known. Clients' names are looked up here and never become paths."""

    def __init__(
        self,
        find: Callable[[], Sequence[ModelSource]],
        default: str | None,
        aliases: Mapping[str, str],
    ) -> None:
        """find: in a stable order; runs in a thread. default: the id for requests without a name;
        None: the only model, if there is only one. aliases: see ModelNames."""
        self._find, self._default, self._aliases = find, default, aliases
        self._looking: asyncio.Task[None] | None = None
        self._look_from = 0.0
        self.sources: Mapping[str, ModelSource] = {}
        self.names = ModelNames((), {})

    async def look(self) -> None:
        """Find what is there now, unless that was done just before.

        All requests that wait for one look go on together: the queue for models has all of them
        before a model makes way for another one.
        """
        if self._looking is None or self._looking.done():
            if time.monotonic() < self._look_from:
                return
            self._looking = asyncio.create_task(self._look())
        await asyncio.shield(self._looking)  # also if this client leaves

    async def _look(self) -> None:
        began = time.monotonic()
        try:
            found = await asyncio.to_thread(self._find)
        except OSError as error:
            _log.warning("the models cannot be listed: %s", error)
            found = list(self.sources.values())
        ended = time.monotonic()
        self._look_from = ended + max(LOOK_SECONDS, LOOK_TIMES * (ended - began))
        self.sources = {source.id: source for source in found}
        self.names = ModelNames(found, self._aliases)

    async def source(self, name: str) -> ModelSource:
        """The model of a name; "" for the default. UnknownModelError, UnnamedModelError."""
        found = self._known(name)
        if found is None:
            await self.look()
            found = self._known(name)
        if found is None:
            ids = list(self.sources)
            raise UnknownModelError(name, ids) if name else UnnamedModelError(ids)
        return found

    def _known(self, name: str) -> ModelSource | None:
        if not name:
            only = next(iter(self.sources)) if len(self.sources) == 1 else None
            return self.sources.get(self._default or only or "")
        return self.sources.get(self.names.id_of(name) or "")
