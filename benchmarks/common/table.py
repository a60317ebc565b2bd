"""Tables of text, for terminals and for Markdown files."""

from collections.abc import Sequence
from pathlib import Path

MARKER_BEGIN = "<!-- performance:begin -->"
MARKER_END = "<!-- performance:end -->"

UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))

Rows = Sequence[Sequence[str]]


def markdown(head: Sequence[str], rows: Rows) -> str:
    """A Markdown table. The first column is aligned left, the others right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def around_markers(path: Path) -> tuple[str, str]:
    """The text before the first marker and after the second one. ValueError if they are missing."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(MARKER_BEGIN)
    _, end, after = rest.partition(MARKER_END)
    if not begin or not end:
        raise ValueError(f"{path} has no {MARKER_BEGIN} followed by {MARKER_END}")
    return before, after


def replace_marked(path: Path, text: str) -> None:
    """Put `text` between the markers in a file. ValueError for a file without them."""
    before, after = around_markers(path)
    marked = f"{MARKER_BEGIN}\n{text.strip()}\n{MARKER_END}"
    path.write_text(f"{before}{marked}{after}", encoding="utf-8")


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
    # 0.9995 and more rounds to 1.
    unit, scale = next((unit for unit in UNITS if seconds >= 0.9995 * unit[1]), UNITS[-1])
    digits = 3 if seconds < 999.5 * scale else 4
    return f"{seconds / scale:.{digits}g} {unit}"


def in_threads(count: int) -> str:
    """2 -> "2 threads"."""
    return f"{count} thread{'s' if count > 1 else ''}"
