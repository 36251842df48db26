"""Logs that are one JSON document: decoding, recognition by the keys at its start, dotted paths, texts of messages."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from muscle.errors import LogError, quoted
from muscle.measure.logs.lines import decode
from muscle.measure.logs.rows import BadRowError, as_text

Content = TypeVar("Content")

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAX_DRAW = 2**31 - 1
# A string, with the colon that makes it a key, or a bracket; a string may be cut off by the end of what was read.
_TOKEN = re.compile(rb'"((?:[^"\\]|\\.)*)(?:"(\s*:)?|\\?\Z)|[{}\[\]]', re.DOTALL)


def read_document(path: Path, decoder: msgspec.json.Decoder[Content]) -> Content:
    """Decode a file that is one JSON document.

    Raises:
        LogError: It is not JSON, or not of the decoder's type.
        RecursionError: It is nested too deeply; see `shallow`.
    """
    return decode_document(path.read_bytes(), decoder, str(path))


def decode_document(data: bytes, decoder: msgspec.json.Decoder[Content], where: str) -> Content:
    """Decode a JSON document, bare NaN and Infinity included.

    Raises:
        LogError: It is not JSON, or not of the decoder's type; the message starts with `where`.
        RecursionError: It is nested too deeply; see `shallow`.
    """
    try:
        return decode(data.removeprefix(_BYTE_ORDER_MARK), decoder)
    except msgspec.ValidationError as error:
        raise LogError(f"{where}: {error}; write the log again with the tool that made it") from None
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise LogError(f"{where}: not JSON, or cut off ({reason}); copy the log anew, or run it again") from None


@contextmanager
def shallow(log: Path) -> Iterator[None]:
    """Refuse what is nested so deeply that Python gives up on it.

    Raises:
        LogError: In place of the RecursionError.
    """
    try:
        yield
    except RecursionError:
        raise LogError(f"{log}: lists or objects nested too deeply; take them out of the log") from None


def key_paths(head: bytes, depth: int) -> set[str]:
    """The keys that the start of a JSON document shows, down to a depth; "results.[].score" is a key in a list.

    Only the start is looked at, so that a large log is recognised at once.
    """
    paths: set[str] = set()
    parents: list[str] = []
    name = ""
    for token in _TOKEN.finditer(head):
        if token[0] in (b"{", b"["):
            parents.append(name)
            name = "[]" if token[0] == b"[" else ""
        elif token[0] in (b"}", b"]"):
            name = parents.pop() if parents else ""
        elif token[2]:
            name = token[1].decode(errors="replace")
            if len(parents) <= depth:
                paths.add(".".join([*filter(None, parents), name]))
    return paths


def at(value: object, path: str) -> object:
    """What stands at a dotted path such as "metadata.subject" or "choices.0"; None where nothing does.

    Keys may hold dots themselves.
    """
    if isinstance(value, msgspec.Struct):
        names = zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True)
        value = {key: getattr(value, name) for key, name in names}
    if isinstance(value, dict) and path in value:
        return value[path]
    for dot in (match.start() for match in re.finditer(r"\.", path)):
        inner = _step(value, path[:dot])
        if inner is not None:
            return at(inner, path[dot + 1 :])
    return _step(value, path)


def _step(value: object, key: str) -> object:
    if isinstance(value, dict):
        return value.get(key)
    if isinstance(value, list) and re.fullmatch("[0-9]{1,9}", key) and int(key) < len(value):
        return value[int(key)]
    return None


def cells(row: object, paths: Sequence[str]) -> tuple[str | None, ...]:
    """What stands at each dotted path, as text: the row's labels."""
    return tuple(as_text(at(row, path)) for path in paths)


def plain_text(content: object) -> str | None:
    """Text of a message: a text itself, or the texts among parts such as {"type": "text", "text": ...}."""
    if isinstance(content, list):
        parts = [part if isinstance(part, str) else at(part, "text") for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if texts else None
    return as_text(content)


def chat_text(content: object) -> str | None:
    """Text of an input: a text itself, or a chat's messages, each after its role where there are several."""
    if not isinstance(content, list):
        return as_text(content)
    messages = [(as_text(at(message, "role")), plain_text(at(message, "content"))) for message in content]
    if len(messages) == 1:
        return messages[0][1]
    return "\n\n".join(f"{role or '?'}: {text or ''}" for role, text in messages)


def content_hash(content: object) -> str:
    """Hexadecimal hash of what an item asks, to notice that one id names two different items."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def as_draw(value: object, name: str) -> int:
    """Number of a draw: a whole number from 0, such as an epoch.

    Raises:
        BadRowError: It is anything else.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_DRAW:
        return value
    raise BadRowError(f"{name} is {quoted(value)}; expected a whole number from 0")


def check_model(log: Path, task: str, model: str, first: str) -> None:
    """Refuse a second model's run of a task: a folder is one model's log.

    Raises:
        LogError: The models differ.
    """
    if model != first:
        raise LogError(f"{log}: task {task} of {model} beside that of {first}; keep one model's runs per folder")
