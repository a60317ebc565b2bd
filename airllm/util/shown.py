"""Shows any value in a message, in bounded length."""

import reprlib

__all__ = ["shown"]

MAX_BITS = 256  # larger integers are not written out; Python writes at most 4,300 digits


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80

    def repr_int(self, value: int, level: int) -> str:
        bits = int.bit_length(value)
        return repr(value) if bits <= MAX_BITS else f"an integer of {bits:,} bits"


_SHORT = _Short()


def shown(value: object) -> str:
    """The repr of `value`, shortened to a few hundred characters. An integer of more than 256 bits
    becomes its size."""
    return _SHORT.repr(value)
