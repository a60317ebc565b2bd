"""Makes text from a file or a peer safe to show on a terminal.

A terminal obeys what is written to it: an escape sequence in a model's name or in an error that
quotes a file can set the window's title, overwrite lines or type commands into some terminals.
"""

__all__ = ["printable", "printable_lines"]


def printable(value: object) -> str:
    r"""str(value) on one line, with escapes for characters that are not printable.

    These are control characters (ESC becomes \x1b, a newline \n), characters that change the
    direction of the text around them, spaces other than " ", and halves of surrogate pairs.
    Backslashes stay, so that escaped text does not change again.
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def printable_lines(value: object) -> str:
    """The same, for messages of several lines: newlines stay."""
    return "\n".join(map(printable, str(value).split("\n")))
