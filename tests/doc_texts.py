"""What the program can print: every string of the sources that could be a message."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent


@cache
def texts() -> dict[re.Pattern[str], str]:
    """Each as a pattern and as its fixed text. A comment or a docstring is none."""
    found: dict[str, str] = {}
    for folder in ("airllm", "cpp_ext"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            docstrings = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
            for node in ast.walk(tree):
                pieces = _pieces(node)
                fixed = "".join(piece for piece in pieces if piece is not None)
                if len(fixed) >= 8 and id(node) not in docstrings:
                    found[_pattern(pieces)] = fixed
    for path in (ROOT / "cpp_ext").rglob("*.cpp"):
        joined = re.sub(r'"\s*\n\s*"', "", path.read_text(encoding="utf-8"))
        found |= {re.escape(text): text for text in re.findall(r'"((?:[^"\\]|\\.){8,})"', joined)}
    return {re.compile(pattern): text for pattern, text in found.items()}


def _pieces(node: ast.AST) -> list[str | None]:
    """Of a string or an f-string; None for what is filled in."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    constants = [part.value if isinstance(part, ast.Constant) else None for part in parts]
    return [constant if isinstance(constant, str) else None for constant in constants]


def _pattern(pieces: list[str | None]) -> str:
    return "".join(
        ".*" if piece is None else re.sub(r"%(?:\\\.\d)?[sdf]", ".*", re.escape(piece))
        for piece in pieces
    )


@cache
def variables_read() -> set[str]:
    """The environment variables that a source asks for."""
    read = re.compile(r"""(?:environ\S*[(\[]|getenv\()["'](\w+)["']""")
    sources = [
        path
        for folder in ("airllm", "cpp_ext", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".cpp", ".h")
    ]
    sources.append(ROOT / "setup.py")
    return {name for path in sources for name in read.findall(path.read_text(encoding="utf-8"))}
