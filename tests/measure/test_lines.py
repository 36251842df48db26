"""JSON lines and JSON lists, whole and damaged: rows with their line numbers, or one error that says where."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscle.errors import LogError
from muscle.measure.logs.lines import json_rows, list_rows

ANY_ROW: msgspec.json.Decoder[Any] = msgspec.json.Decoder(dict[str, Any])

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), max_size=5)


class Row(msgspec.Struct):
    id: int


def test_blank_lines_marks_and_bare_nan(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"id": 1}\r\n\n  \n{"id": NaN}\n{"id": -Infinity}')
    (first, a), (second, b), (third, c) = json_rows(file, ANY_ROW)
    assert (first, second, third) == (1, 4, 5)
    assert (a["id"], c["id"]) == (1, -math.inf)
    assert math.isnan(b["id"])


@given(ROWS, st.sampled_from([None, 0, 2]), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_a_list_gives_its_elements_and_their_lines(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], indent: int | None, ascii_only: bool, newline: str
) -> None:
    file = tmp_path_factory.mktemp("list") / "log.json"
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only).replace("\n", newline)
    file.write_bytes(text.encode(errors="surrogatepass" if ascii_only else "strict"))
    found = list(list_rows(file, ANY_ROW))
    assert [row for _, row in found] == rows
    lines = text.split("\n")
    assert all("{" in lines[number - 1] for number, _ in found)
    assert len({number for number, _ in found}) == (len(rows) if indent is not None else min(len(rows), 1))


def test_a_looser_type_for_the_rows_that_need_it(tmp_path: Path) -> None:
    rows = [{"id": 1}, {"id": "x"}, {"id": 2}]
    lines, listed = tmp_path / "log.jsonl", tmp_path / "log.json"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    listed.write_text(json.dumps(rows))
    typed: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Row)
    for found in (json_rows(lines, typed, ANY_ROW), list_rows(listed, typed, ANY_ROW)):
        assert [row for _, row in found] == [Row(1), {"id": "x"}, Row(2)]


CUT = '{"id": "a\\u12ab\\"b", "correct": true, "x": [null, NaN, -1.5e-3, false, {"y": -Infinity}], "z": "\u00e9"}'


def test_a_row_cut_off_anywhere_is_told_as_such(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    whole = CUT.encode()
    for end in range(1, len(whole)):
        file.write_bytes(whole + b"\n" + whole[:end])
        with pytest.raises(LogError, match=r"log\.jsonl:2: the last line is cut off"):
            list(json_rows(file, ANY_ROW))


def test_a_list_cut_off_anywhere_is_told_as_such(tmp_path: Path) -> None:
    file = tmp_path / "log.json"
    whole = f"[\n{CUT},\n{CUT}\n]".encode()
    for end in range(1, len(whole)):
        file.write_bytes(whole[:end])
        with pytest.raises(LogError, match=r"log\.json:[123]: the list is cut off"):
            list(list_rows(file, ANY_ROW))


def test_rows_after_a_bad_byte_are_not_blamed(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(b'{"id": 1}\n{"id": "\xff"}\n{"id": 3}\n')
    with pytest.raises(LogError, match=r"log\.jsonl:2: not valid UTF-8"):
        list(json_rows(file, ANY_ROW))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", ":1: the list does not end with its last object"),
        ('[{"id": 1},\n2]', ":1: the list does not end with its last object"),
        ('[{"id": 1},]', ":1: the list does not end with its last object"),
        ('[{"id": 1},\n2, {"id": 3}]', ":2: not a list of objects"),
        ('[{"id": 1}\n{"id": 2}]', ":2: not a list of objects"),
        ('[{"id": 1}}', ":1: the list does not end with its last object"),
        ('[{"id": 1}]\n[{"id": 2}]', ":1: the list does not end with its last object"),
        ('[{"id": 1},\n[2]]', ":2: Expected `object`, got `array`"),
        ('[{"id": 1},\n{"id": tru}]', ":2: not JSON"),
        ('[{"id": 1},\n{"id": \xff}]', ":2: not valid UTF-8"),
        ('[{"id": 1},\n\n{"id": "x"}]', ":3: Expected `int`, got `str` - at `$.id`; correct the row, or delete it"),
        ('[{"id": 1},\n{}]', ":2: Object missing required field `id`"),
    ],
)
def test_what_is_no_list_of_rows(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "log.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(LogError) as error:
        list(list_rows(file, msgspec.json.Decoder(Row)))
    assert message in str(error.value)


def test_an_empty_list_has_no_rows(tmp_path: Path) -> None:
    for text in ("[]", " [ \n ] \n", "\ufeff[]"):
        (tmp_path / "log.json").write_text(text)
        assert list(list_rows(tmp_path / "log.json", ANY_ROW)) == []


@given(ROWS, st.data())
def test_a_damaged_list_gives_rows_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], data: st.DataObject
) -> None:
    content = json.dumps(rows, indent=1).encode()
    start = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(start, len(content)))
    file = tmp_path_factory.mktemp("list") / "log.json"
    file.write_bytes(b"[" + content[:start] + data.draw(st.binary(max_size=8)) + content[end:])
    for read in (list_rows, json_rows):
        with suppress(LogError):
            list(read(file, ANY_ROW))


def test_no_bracket_inside_a_text_counts(tmp_path: Path) -> None:
    rows = [{"a": '"]}'}, {"b\\": "{[\\"}, {"c": "\\\\"}]
    (tmp_path / "log.json").write_text(json.dumps(rows))
    assert [row for _, row in list_rows(tmp_path / "log.json", ANY_ROW)] == rows
