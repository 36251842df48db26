"""Errors that a user can act on: what is wrong, where, and the way out. The command line exits with 2 on them."""


class MuscleError(Exception):
    """Base of every error that muscle raises on purpose; the message is one line and ends with the remedy."""


class LogError(MuscleError):
    """An evaluation log cannot be read; the message starts with the file and, where there is one, the line."""


class PairingError(MuscleError):
    """The logs can be read, but what they hold cannot be compared item by item."""


def quoted(value: object, limit: int = 60) -> str:
    """The value as it would be written in Python, on one line, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
