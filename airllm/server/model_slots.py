"""Which models make way for another one, and when.

Loading takes long, so a model that has been loaded is used before it makes way:

- All that waits for it is answered, whatever waits for other models.
- While it is busy, it takes new requests for a turn: TURN_LOADS times the seconds that it took to
  load. After that, new requests wait behind those for which it makes way.
- Once nothing runs on it, it waits a LINGER_LOADS part of these seconds for the next request: a
  client that asks question after question keeps its turn.

So, however many requests alternate between two models, the share of the time that goes into loading
is bounded, about 1 in 1 + TURN_LOADS, and so is the wait.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from airllm.server.engine_thread import EngineThread
from airllm.server.model_catalog import ModelNeeds, ModelSource
from airllm.server.model_errors import LoadError
from airllm.server.models import ModelState

__all__ = ["Slot", "victims"]

TURN_LOADS, LEAST_TURN, MOST_TURN = 3.0, 1.0, 30.0  # seconds
LINGER_LOADS, MOST_LINGER = 0.1, 1.0


@dataclass(eq=False)
class Slot:
    """A model: its source, and what it is doing.

    n_uses: requests that run on it. n_bytes: that it has of the budget. loaded, used: when that
    was; load_seconds: how long it took. keep_alive: seconds; None for ever. is_unwanted: its files
    have changed or gone, or somebody wants it unloaded. failed: the last error, and when it was.
    """

    source: ModelSource
    state: ModelState = "unloaded"
    needs: ModelNeeds | None = None
    engine: EngineThread | None = None
    n_uses: int = 0
    n_bytes: int = 0
    loaded: float = 0.0
    used: float = 0.0
    load_seconds: float = 0.0
    keep_alive: float | None = None
    is_unwanted: bool = False
    failed: tuple[LoadError, float] | None = None

    @property
    def is_open(self) -> bool:
        """Whether new requests may run on it."""
        return self.state == "loaded" and not self.is_unwanted

    @property
    def is_idle(self) -> bool:
        return self.state == "loaded" and not self.n_uses

    @property
    def is_wrong(self) -> bool:
        """Whether its file cannot be opened."""
        return self.failed is not None and self.needs is None

    @property
    def idle_until(self) -> float | None:
        """When it is unloaded unless it is used before."""
        return None if self.keep_alive is None else self.used + self.keep_alive

    def turn_ends(self, since: float) -> float:
        """Until when it takes new requests while another model has waited for its memory `since`
        then."""
        turn = min(max(TURN_LOADS * self.load_seconds, LEAST_TURN), MOST_TURN)
        return max(since, self.loaded) + turn

    def stays_until(self, since: float) -> float:
        """Likewise, until when it stays for its next request once nothing runs on it."""
        linger = min(LINGER_LOADS * self.load_seconds, MOST_LINGER)
        return min(self.used + linger, self.turn_ends(since))


def victims(there: Sequence[Slot], n_bytes: int, budget: int | None) -> list[Slot]:
    """Which of the models that are there make way for n_bytes: those that are not used, the least
    recently used first, and if that is not enough those that are."""
    if budget is None:
        return []
    missing = sum(slot.n_bytes for slot in there) + n_bytes - budget
    found = []
    for slot in sorted(there, key=lambda slot: (slot.n_uses > 0, slot.used)):
        if missing <= 0:
            break
        found.append(slot)
        missing -= slot.n_bytes
    return found
