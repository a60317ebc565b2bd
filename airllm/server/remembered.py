"""The last responses, which later requests go on from."""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from airllm.server.errors import ApiError

__all__ = ["Remembered"]

MOST_RESPONSES = 128
MOST_CHARACTERS = 64 << 20


class Remembered:
    """At most 128 responses, the oldest of which go first; fewer if they are long."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[Mapping[str, Any], list[dict[str, Any]], int]]
        self._kept = OrderedDict()
        self._n_characters = 0

    def add(self, response: Mapping[str, Any], messages: Sequence[dict[str, Any]]) -> None:
        """messages: of the conversation, up to the response's own."""
        size = len(json.dumps([response, *messages]))
        if size > MOST_CHARACTERS:
            return
        self._kept[response["id"]] = response, list(messages), size
        self._n_characters += size
        while len(self._kept) > MOST_RESPONSES or self._n_characters > MOST_CHARACTERS:
            self.forget(next(iter(self._kept)))

    def response(self, id: str) -> Mapping[str, Any]:
        return self._found(id)[0]

    def messages(self, id: str) -> list[dict[str, Any]]:
        return self._found(id)[1]

    def forget(self, id: str) -> None:
        self._n_characters -= self._found(id)[2]
        del self._kept[id]

    def _found(self, id: str) -> tuple[Mapping[str, Any], list[dict[str, Any]], int]:
        if id not in self._kept:
            raise ApiError(
                404,
                f"there is no response {id[:80]!r}: this server remembers the last"
                f" {MOST_RESPONSES} of those that were stored",
                "previous_response_id",
                "response_not_found",
            )
        return self._kept[id]
