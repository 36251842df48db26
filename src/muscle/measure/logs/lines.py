"""JSON lines, one typed row at a time: fields that nobody asked for are skipped, not built (msgspec)."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from muscle.errors import LogError

Row = TypeVar("Row")

# What may be left of a JSON token whose end is missing; an unterminated string is told by the parser.
_WORDS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")
_NUMBER_OR_ESCAPE = re.compile(r"\.|[eE][+-]?|u[0-9a-fA-F]{0,4}")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def numbered_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers from 1 and without a byte order mark."""
    with file.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            if number == 1:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if line.strip():
                yield number, line


def json_rows(file: Path, decoder: msgspec.json.Decoder[Row]) -> Iterator[tuple[int, Row]]:
    """Yield (line number, row) for each line of a JSON-lines file.

    Raises:
        LogError: A line is cut off, is not JSON, or lacks a field that the decoder's type requires.
    """
    lines = numbered_lines(file)
    for number, line in lines:
        try:
            row = decode(line, decoder)
        except msgspec.ValidationError as error:
            raise LogError(f"{file}:{number}: {error}; correct the row, or delete the line") from None
        except (ValueError, RecursionError) as error:
            raise LogError(f"{file}:{number}: {diagnosis(error, is_last=next(lines, None) is None)}") from None
        yield number, row


def decode(line: bytes, decoder: msgspec.json.Decoder[Row]) -> Row:
    """Decode one line, bare NaN and Infinity included, which Python writes although JSON forbids them.

    Raises:
        msgspec.ValidationError: The row does not have the decoder's type.
        ValueError: The line is not JSON (UnicodeDecodeError: not even text).
    """
    try:
        return decoder.decode(line)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        return msgspec.convert(json.loads(line), decoder.type)


def diagnosis(error: Exception, *, is_last: bool) -> str:
    """What is wrong with a line that `decode` refuses, and the way out.

    Args:
        error: What `decode` raised.
        is_last: Whether the line is the file's last, where a writer that was stopped leaves half a row.
    """
    if is_last and _ends_too_soon(error):
        return "the last line is cut off (unfinished JSON); run the evaluation again, or delete the line"
    if isinstance(error, UnicodeDecodeError):
        return "not valid UTF-8; convert the file to UTF-8"
    return f"not JSON ({str(error).splitlines()[0]}); correct the line, or delete it"


def _ends_too_soon(error: Exception) -> bool:
    """Whether the parser failed because the text stops, not because of what stands in it."""
    if isinstance(error, UnicodeDecodeError):
        return error.reason == "unexpected end of data"
    if not isinstance(error, json.JSONDecodeError):
        return False
    rest = error.doc[error.pos :].strip()
    starts_word = any(word.startswith(rest) for word in _WORDS)
    return starts_word or error.msg.startswith("Unterminated string") or bool(_NUMBER_OR_ESCAPE.fullmatch(rest))
