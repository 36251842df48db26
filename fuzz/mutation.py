"""Mutations that know JSON: bytes alone seldom get past a parser.

A body has one JSON document per line. One of them is parsed, some of its values are changed, and it is written anew,
with what Python's own JSON cannot write (numbers of 5000 digits, a thousand brackets, a key twice) put in afterwards.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

OPTION_BYTES = 4
"""At the start of an input: what to read of the log and how to write it; see `readers.py`."""

_Container = dict[str, Any] | list[Any]

_RAW = re.compile(rb'"@@(\w+):(\d+)@@"')
_TWICE = "@@twice"

_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1.0, 1e308, 1e-320),
    *(2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**40, 10**400, float("nan"), float("inf"), -float("inf")),
    *("", " ", "0", "1", "1.0", "-1", "nan", "NaN", "inf", "1e999", "True", "False", "true", "C", "I", "A", "A, B"),
    *("\ud800", "\udc00x", "é", "²", "١", "𝟙", "\u2028", "\x1b[31m", "\0", "a.b", "attachment://a", "0x10", "1_0"),
    *("['a', {[]: 1}]", "['a', [{1}]]", "['a', b'x']", "['a'", "['\\d']", "['a', 1j, ...]", "['a', {1: 1, 'a': 2}]"),
    *("['a', 0x" + "f" * 5000 + "]", '[{"role": 1, "content": [2]}]', '[{"', "x" * 3000, "1" * 41, "9" * 5000, "-0x1"),
    *([], {}, [[]], [None], [1, 2], ["a", "b"], {"a": 1}, {"": None}),
    *([["-1.5", "False"]], [["nan", "True"]], [[1e308, True]]),
    *("@@digits:300@@", "@@digits:4300@@", "@@digits:5000@@"),
    *("@@list:30@@", "@@list:400@@", "@@list:970@@", "@@list:3000@@"),
    *("@@object:30@@", "@@object:480@@", "@@object:970@@", "@@object:2000@@"),
)
_KEYS = (
    *("id", "correct", "score", "answer", "target", "task", "draw", "doc_hash", "input", "metrics", "filter", "acc"),
    *("doc_id", "filtered_resps", "logit_0", "logit_1", "stats", "samples", "eval", "results", "value", "error"),
    *("", ".", "a.b", "\x00", '"', "\ud800", "0", "é", "x" * 200, "extra_0", "acc_mutual_info", "acc_norm", "text"),
)


def mutate(data: bytes, most: int, chance: random.Random, other: Callable[[bytes, int], bytes] | None = None) -> bytes:
    """A changed input of at most `most` bytes.

    Args:
        data: The options' bytes and a body.
        most: The largest length.
        chance: Decides.
        other: libFuzzer's own mutation of bytes; None for a simple one.
    """
    options, body = data[:OPTION_BYTES].ljust(OPTION_BYTES, b"\0"), data[OPTION_BYTES:]
    dice = chance.random()
    if dice < 0.12:
        place = chance.randrange(OPTION_BYTES)
        options = options[:place] + bytes([chance.randrange(256)]) + options[place + 1 :]
    if dice < 0.72:
        changed = _mutate_document(body, chance)
        if changed is not None and len(changed) <= most - OPTION_BYTES:
            return options + changed
    if dice > 0.95:
        options, body = options, _mutate_lines(body, chance)
    else:
        body = (other or (lambda old, _: _mutate_bytes(old, chance)))(body, max(most - OPTION_BYTES, 1))
    return (options + body)[:most]


def _mutate_bytes(body: bytes, chance: random.Random) -> bytes:
    changed = bytearray(body)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(changed) + 1)
        there = chance.choice((b"", b"\0", b"\xff", b'"', b"{", b"]", b"\n", b"NaN"))
        changed[place : place + chance.randrange(3)] = there
    return bytes(changed)


def _mutate_lines(body: bytes, chance: random.Random) -> bytes:
    """Lines repeated, dropped, exchanged, cut off, or a byte order mark before them."""
    lines = body.split(b"\n")
    place = chance.randrange(len(lines))
    match chance.randrange(5):
        case 0:
            lines[place:place] = [lines[chance.randrange(len(lines))]] * chance.choice((1, 1, 2, 20))
        case 1:
            del lines[place]
        case 2:
            chance.shuffle(lines)
        case 3:
            lines[place] = lines[place][: chance.randrange(len(lines[place]) + 1)]
        case _:
            lines[0] = b"\xef\xbb\xbf" + lines[0]
    return b"\n".join(lines)


def _mutate_document(body: bytes, chance: random.Random) -> bytes | None:
    """The body with one of its documents changed; None where that one is no JSON."""
    lines = body.split(b"\n")
    place = chance.randrange(len(lines))
    try:
        document = json.loads(lines[place])
        if not isinstance(document, dict | list):
            return None
        spots = list(_spots(document))
        for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
            if spots:
                _change(*chance.choice(spots), spots, chance)
        lines[place] = _written(document, ascii_only=chance.random() < 0.9)
    except (ValueError, RecursionError):
        return None
    return b"\n".join(lines)


def _spots(value: _Container) -> Iterator[tuple[_Container, Any]]:
    """Every container with each of its keys or indices."""
    open_ = [value]
    while open_:
        container = open_.pop()
        for key, inner in container.items() if isinstance(container, dict) else enumerate(container):
            yield container, key
            if isinstance(inner, dict | list):
                open_.append(inner)


def _change(container: Any, key: Any, spots: list[tuple[_Container, Any]], chance: random.Random) -> None:
    if key not in container if isinstance(container, dict) else key >= len(container):
        return  # an earlier change took it away
    value = container[key]
    match chance.randrange(11):
        case 0:
            del container[key]
        case 1 | 2 | 3:
            container[key] = _value(chance)
        case 4:
            container[key] = chance.choice(([value], {"a": value}, [value, value], str(value)[:4000], {"text": value}))
        case 5 if isinstance(container, dict):
            container[chance.choice(_KEYS)] = container.pop(key)
        case 6 if isinstance(container, dict):
            container[f"{key}{_TWICE}"] = _value(chance)
        case 7:
            container[key] = _tweaked(value, chance)
        case 8:
            donor, name = chance.choice(spots)
            there = name in donor if isinstance(donor, dict) else name < len(donor)
            container[key] = json.loads(json.dumps(donor[name])) if there else None
        case 9 if isinstance(value, dict):
            value[chance.choice(_KEYS)] = _value(chance)
        case 9 if isinstance(value, list):
            value.append(chance.choice(value) if value and chance.random() < 0.7 else _value(chance))
        case _ if isinstance(container, list):
            container.insert(key, json.loads(json.dumps(value)))
        case _:
            container[chance.choice(_KEYS)] = value


def _value(chance: random.Random) -> Any:
    return copy.deepcopy(chance.choice(_VALUES))


def _tweaked(value: Any, chance: random.Random) -> Any:
    if isinstance(value, bool) or value is None:
        return chance.choice((True, False, None))
    if isinstance(value, int | float):
        return chance.choice((value + 1, -value, str(value), float(value) if abs(value) < 1e300 else 0))
    if isinstance(value, str):
        cut = chance.randrange(len(value) + 1)
        return chance.choice((value[:cut], value + value[:cut], value.upper(), value[:cut] + chance.choice(_KEYS)))
    return chance.choice(([], {}, None))


def _written(document: _Container, *, ascii_only: bool) -> bytes:
    text = json.dumps(document, ensure_ascii=ascii_only).replace(_TWICE, "")
    return _RAW.sub(_raw, text.encode(errors="surrogatepass"))


def _raw(found: re.Match[bytes]) -> bytes:
    count = int(found[2])
    if found[1] == b"digits":
        return b"9" * count
    return b"[" * count + b"]" * count if found[1] == b"list" else b'{"a":' * count + b"1" + b"}" * count


def inflate(data: bytes, size: int, chance: random.Random) -> bytes:
    """An input of about `size` bytes: what takes no time in a small log may take hours in a large one.

    Up to three things in it are made large: a list or an object gets many entries, a text or a key many characters, or
    there are many lines.
    """
    body, parts = data[OPTION_BYTES:], chance.choice((1, 2, 2, 3))
    lines = body.split(b"\n")
    for _ in range(parts):
        place = chance.randrange(len(lines))
        room = max(size // parts, 1)
        try:
            document = json.loads(lines[place])
            spots = list(_spots(document)) if isinstance(document, dict | list) else []
        except (ValueError, RecursionError):
            spots = []
        if spots and chance.random() < 0.85:
            _inflate_at(*chance.choice(spots), room, chance)
            lines[place] = _written(document, ascii_only=True)
        elif chance.random() < 0.8:
            numbered = chance.random() < 0.7
            times = range(max(min(room // (len(lines[place]) + 1), 20_000), 1))
            lines[place : place + 1] = [_numbered(lines[place], i) if numbered else lines[place] for i in times]
        else:
            cut = chance.randrange(len(lines[place]) + 1)
            lines[place] = lines[place][:cut] + chance.choice(_FILLERS).encode() * (room // 4) + lines[place][cut:]
    return data[:OPTION_BYTES] + b"\n".join(lines)


_FILLERS = (*'x9.,\\"[{ \0\né', "A, ", ", ", "a b ", "0.", "[]", "['a', ")


def _numbered(line: bytes, number: int) -> bytes:
    """The line with another number in place of its first."""
    return re.sub(rb"[0-9]+", str(number).encode(), line, count=1)


def _inflate_at(container: Any, key: Any, room: int, chance: random.Random) -> None:
    value, dice = container[key], chance.random()
    if dice < 0.3 and isinstance(container, dict):
        container[(chance.choice(_FILLERS) * room)[:room]] = container.pop(key)
    elif dice < 0.5:
        filler = chance.choice(_FILLERS)
        text = (filler * (room // len(filler)))[:room]
        container[key] = f"['a', {text}]" if chance.random() < 0.2 else text
    else:
        entry: Any = chance.choice((json.loads(json.dumps(value)), 0, {}, [], "", "x", None, 1.5))
        many = min(room // (len(json.dumps(entry)) + 2), 200_000)
        inside = value if isinstance(value, dict | list) and chance.random() < 0.7 else container
        if isinstance(inside, list):
            inside += [entry] * many
        else:
            inside |= {f"{chance.choice(('', 'a'))}{i}": entry for i in range(many * 2 // 3)}
