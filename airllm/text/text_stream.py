"""Turns the bytes of tokens into text to show: whole characters, and no part of a stop string."""

import codecs
from collections.abc import Sequence


class TextStream:
    """Takes the bytes of tokens one by one, and returns text as soon as it is certain.

    It holds back the bytes of an incomplete character, and text that may be the beginning of a
    stop string. Bytes that are not UTF-8 become U+FFFD.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # the longest end of the text with which a stop string begins
        self.stopped = False  # whether a stop string has come; push then returns no text

    def push(self, data: bytes) -> str:
        """The text that `data` makes certain; it may be empty."""
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(data)
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = self._held_length(text)
        certain, self._held = text[: len(text) - held], text[len(text) - held :]
        return certain

    def finish(self) -> str:
        """The text that was held back for a stop string that did not come.

        An incomplete character at the end is dropped: it is not text, and exists only because
        the answer was cut off inside the character.
        """
        rest, self._held = self._held, ""
        return rest

    def _held_length(self, text: str) -> int:
        """The number of characters at the end of `text` that may begin a stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
