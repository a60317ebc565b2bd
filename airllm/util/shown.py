"""Values in messages: of bounded length, whatever was given."""

import reprlib

__all__ = ["shown"]

MAX_BITS = 256  # of an integer that is written out; Python writes no more than 4,300 digits


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80

    def repr_int(self, value: int, level: int) -> str:
        bits = int.bit_length(value)
        return repr(value) if bits <= MAX_BITS else f"an integer of {bits:,} bits"


_SHORT = _Short()


def shown(value: object) -> str:
    """`value` for a message: its repr in at most some hundred characters; of an integer with more
    than 256 bits, its size."""
    return _SHORT.repr(value)
