"""The pages that people read, taken apart: code blocks, code spans, tables and links."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs/pages").rglob("*.md"))
ALL = [README, ROOT / "benchmarks/README.md", *PAGES]

_FENCE = re.compile(r"^\s*(```+|~~~+)\s*(\S*)\s*$")
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A fenced or an indented block. language: as the fence names it; "" where none does."""

    page: Path
    line: int  # of its first line of text, from 1 on
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Span:
    """A piece of `code` within a sentence."""

    page: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: {self.text}"


def blocks(page: Path) -> list[Block]:
    return _taken_apart(page)[0]


def prose(page: Path) -> list[tuple[int, str]]:
    """The lines outside of blocks, with their numbers."""
    return _taken_apart(page)[1]


def spans(page: Path) -> list[Span]:
    """A span may go on in the next line, as in Markdown."""
    lines = prose(page)
    text = "\n".join(line for _, line in lines)
    found = []
    for paragraph in re.finditer(r"(?:.+\n?)+", text):
        for match in _SPAN.finditer(paragraph[0]):
            number = lines[text.count("\n", 0, paragraph.start() + match.start())][0]
            found.append(Span(page, number, " ".join(match[1].split())))
    return found


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", "\n".join(line for _, line in prose(page)))


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub and mkdocs make them."""
    headings = (re.match(r"#+ (.*)", line) for _, line in prose(page))
    plain = (re.sub(r"[^\w\- ]", "", heading[1]).lower() for heading in headings if heading)
    return {re.sub(r"[\s]+", "-", heading.strip()) for heading in plain}


def tables(page: Path) -> list[list[list[str]]]:
    """Each table as rows of cells, the heading first, without the line below it."""
    found: list[list[list[str]]] = []
    inside = False
    for _, line in prose(page):
        if line.startswith("|"):
            if not inside:
                found.append([])
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
                found[-1].append(cells)
        inside = line.startswith("|")
    return found


def table(page: Path, first: str) -> list[list[str]]:
    """The rows of the one table whose first column has that heading."""
    [rows] = [rows for rows in tables(page) if rows[0][0] == first]
    return rows[1:]


def _taken_apart(page: Path) -> tuple[list[Block], list[tuple[int, str]]]:
    found: list[Block] = []
    rest: list[tuple[int, str]] = []
    fence, language, start, inside = "", "", 0, list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and not mark[2]:
                found.append(Block(page, start, language, "\n".join(inside) + "\n"))
                fence = ""
            else:
                inside.append(line)
        elif mark:
            fence, language, start, inside = mark[1], mark[2], number + 1, []
        elif line.startswith("    ") and (not rest or not rest[-1][1].strip()):
            found.append(Block(page, number, "", line))  # an indented block: nobody says of what
        else:
            rest.append((number, line))
    assert not fence, f"{page}:{start}: the block does not end"
    return found, rest
