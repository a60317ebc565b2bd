"""Tables of text, for terminals and for Markdown files."""

from collections.abc import Sequence
from pathlib import Path

MARKER_BEGIN = "<!-- performance:begin -->"
MARKER_END = "<!-- performance:end -->"

Rows = Sequence[Sequence[str]]


def markdown(head: Sequence[str], rows: Rows) -> str:
    """The first column is aligned left, the others right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replace_marked(path: Path, text: str) -> None:
    """Put `text` between the markers in a file. Raises ValueError for a file without them."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(MARKER_BEGIN)
    _, end, after = rest.partition(MARKER_END)
    if not begin or not end:
        raise ValueError(f"{path} has no {MARKER_BEGIN} followed by {MARKER_END}")
    path.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")


class Columns:
    """Prints rows of fixed widths as they come; a negative width aligns left."""

    def __init__(self, **widths: int) -> None:
        self._widths = tuple(widths.values())
        self.head = tuple(widths)

    def line(self, cells: Sequence[str]) -> str:
        pieces = (
            cell.ljust(-width) if width < 0 else cell.rjust(width)
            for cell, width in zip(cells, self._widths, strict=True)
        )
        return "  ".join(pieces).rstrip()


def duration(seconds: float) -> str:
    """0.00123 -> "1.23 ms"."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}" if seconds < 1000 * scale else f"{seconds:.0f} s"
    return f"{seconds * 1e9:.0f} ns"
