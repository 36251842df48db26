"""JSON lines and JSON lists, one typed row at a time: fields that nobody asked for are skipped, not built (msgspec)."""

import json
import mmap
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from muscle.errors import LogError

Row = TypeVar("Row")

# What may be left of a JSON token whose end is missing; an unterminated string is told by the parser.
_WORDS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")
_NUMBER_OR_ESCAPE = re.compile(r"\.|[eE][+-]?|u[0-9a-fA-F]{0,4}")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BUFFER = 1 << 18  # bytes; a sixth faster than the default
_STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\Z)|[][{}]', re.DOTALL)
_LIST_REMEDY = "write one JSON list of objects, or one object per line"
_HEAD = 1 << 10


def numbered_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers from 1 and without a byte order mark."""
    with file.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            if number == 1:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if line.strip():
                yield number, line


def json_rows(
    file: Path, decoder: msgspec.json.Decoder[Row], looser: msgspec.json.Decoder[Row] | None = None
) -> Iterator[tuple[int, Row]]:
    """Yield (line number, row) for each line of a JSON-lines file.

    Args:
        file: The file.
        decoder: Decodes a line.
        looser: Decodes the lines that do not have the first decoder's type.

    Raises:
        LogError: A line is cut off, is not JSON, or lacks a field that the decoder's type requires.
    """
    fast = decoder.decode
    with file.open("rb", buffering=_BUFFER) as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = fast(line)
            except (ValueError, RecursionError):  # a fault, or else a blank line, a byte order mark, a bare NaN
                rest = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
                if not rest.strip():
                    continue
                row = _decoded(file, number, rest, looser or decoder, lines)
            yield number, row


def list_rows(
    file: Path, decoder: msgspec.json.Decoder[Row], looser: msgspec.json.Decoder[Row] | None = None
) -> Iterator[tuple[int, Row]]:
    """Yield (number of its first line, row) for each object in a JSON list; arguments as of `json_rows`.

    Raises:
        LogError: The list is cut off, or an element is not JSON, no object, or not of the decoder's type.
    """
    for number, element in _elements(file):
        try:
            row = decoder.decode(element)
        except (ValueError, RecursionError):
            row = _decoded(file, number, element, looser or decoder)
        yield number, row


def _decoded(
    file: Path, number: int, text: bytes, decoder: msgspec.json.Decoder[Row], followers: Iterable[bytes] | None = None
) -> Row:
    """Decode what is not plain JSON of the expected type, or say what is wrong with it.

    Args:
        file: The file, for the message.
        number: Of the line.
        text: The line or element.
        decoder: Decodes it.
        followers: The lines after it; None for an element, which is known to be whole.

    Raises:
        LogError: It is not JSON even where a bare NaN is allowed, or a field has the wrong type.
    """
    try:
        return decode(text, decoder)
    except msgspec.ValidationError as error:
        raise LogError(f"{file}:{number}: {error}; correct the row, or delete it") from None
    except (ValueError, RecursionError) as error:
        is_last = followers is not None and not any(follower.strip() for follower in followers)
        raise LogError(f"{file}:{number}: {diagnosis(error, is_last=is_last)}") from None


def _elements(file: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number, JSON) for each object in a list, told apart by brackets and quotes alone.

    The file is mapped, not read, and the list is never built: what is in memory at a time is one element.
    """
    if not file.stat().st_size:  # which cannot be mapped
        raise LogError(f"{file}: the file is empty; run the evaluation again, or leave the file out")
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
        begin = len(_BYTE_ORDER_MARK) if content[: len(_BYTE_ORDER_MARK)] == _BYTE_ORDER_MARK else 0
        line, start, end, depth = 1, begin, begin, 0
        for token in _STRUCTURE.finditer(content):
            mark = token[0]
            if mark in (b"{", b"["):
                depth += 1
                if depth == 2:
                    start = token.start()
                    between = content[end:start]
                    line += between.count(b"\n")
                    if between.strip() != (b"," if end > begin else b"["):
                        raise LogError(f"{file}:{line}: not a list of objects; {_LIST_REMEDY}")
            elif mark in (b"}", b"]"):
                depth -= 1
                if depth == 1:
                    end = token.end()
                    element = content[start:end]
                    yield line, element
                    line += element.count(b"\n")
                elif depth < 1:
                    last, rest = content[end : token.end()], content[token.end() : token.end() + _HEAD]
                    if last.split() not in ([b"]"], [b"[]"], [b"[", b"]"]) or rest.strip():
                        raise LogError(f"{file}:{line}: the list does not end with its last object; {_LIST_REMEDY}")
                    return
        raise LogError(f"{file}:{line}: the list is cut off (unfinished JSON); run the evaluation again")


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
        return msgspec.convert(json.loads(line), decoder.type, strict=decoder.strict)


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
