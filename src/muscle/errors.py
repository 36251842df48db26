"""Errors that a user can act on: what is wrong, where, and the way out. The command line exits with 2 on them."""


class MuscleError(Exception):
    """Base of every error that muscle raises on purpose; the message is one line and ends with the remedy."""

    def __str__(self) -> str:
        """The message, with the names in it that come from logs and paths made safe to print."""
        return printable(super().__str__())


class LogError(MuscleError):
    """An evaluation log cannot be read; the message starts with the file and, where there is one, the line."""


class PairingError(MuscleError):
    """The logs can be read, but what they hold cannot be compared item by item."""


def printable(text: str) -> str:
    """The text with what a terminal would obey or not show (escapes, line breaks, U+202E) as Python writes it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def quoted(value: object, limit: int = 60) -> str:
    """The value as it would be written in Python, on one line, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
