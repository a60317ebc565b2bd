"""From tokens' bytes to text that can be shown: whole characters, and nothing of a stop string."""

import codecs
from collections.abc import Sequence


class TextStream:
    """Takes the bytes of one token after another and gives the text that is certain by now.

    Held back are the bytes of a character that is not complete, and text that could be the
    beginning of a stop string. Bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # the longest end of the text that a stop string begins with
        self.stopped = False  # a stop string came; there will be no more text

    def push(self, data: bytes) -> str:
        """The text that `data` makes certain, which may be none."""
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
        """What was held back because of a stop string that did not come.

        An incomplete character at the end is dropped: it is no text, and it came about only
        because the tokens were cut off.
        """
        rest, self._held = self._held, ""
        return rest

    def _held_length(self, text: str) -> int:
        """Characters at the end of `text` that may become a stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
