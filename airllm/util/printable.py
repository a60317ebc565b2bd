"""What a file or a peer says, as it may be shown on a terminal.

A terminal obeys what is written to it: an escape sequence in a model's name or in an error that
quotes a file can set the window's title, overwrite lines or type commands into some terminals.
"""

__all__ = ["printable", "printable_lines"]


def printable(value: object) -> str:
    r"""str(value) on one line, each character that is not shown as itself written as an escape.

    Escaped are control characters (ESC becomes \x1b, a newline \n), what changes the direction of
    the text around it, spaces other than " ", and halves of surrogate pairs. Backslashes stay, so
    that text which is escaped already does not change.
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def printable_lines(value: object) -> str:
    """The same, for messages of several lines: newlines stay."""
    return "\n".join(map(printable, str(value).split("\n")))
