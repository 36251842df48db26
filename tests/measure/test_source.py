"""From a path to log files: what a folder's files are, and the hash of what was read."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from muscle.errors import LogError
from muscle.measure.logs import OpenLog
from muscle.measure.logs.rows import Selection
from muscle.measure.logs.source import find, inspect
from muscle.measure.predictions import Log

from .conftest import WriteRows

DATE = "2026-01-02T03-04-05.678901"
ROW = {"id": 1, "correct": 1}


def read(path: Path) -> Log:
    return OpenLog(path, Selection()).read()


def test_a_folder_is_read_for_its_samples_alone(tmp_path: Path, write_rows: WriteRows) -> None:
    samples = {"doc_id": 0, "filtered_resps": ["x"], "acc": 1}
    write_rows(f"run/model/samples_piqa_{DATE}.jsonl", [samples])
    write_rows("run/notes.jsonl", [{"anything": 1}])
    (tmp_path / "run" / f"results_{DATE}.json").write_text("{}")
    assert list(read(tmp_path / "run").tasks) == ["piqa"]


@pytest.mark.parametrize(
    ("content", "kind", "fields"),
    [
        ('{"a": 1}\n', "jsonl", {"a": 1}),
        ('\n\n{"a": 1}\n', "jsonl", {"a": 1}),
        ('\ufeff{"a": 1}\n', "jsonl", {"a": 1}),
        ('{\n"a": 1}\n', "json object", {}),
        ('[{"a": {"b": "}"}}, 3]', "json list", {"a": {"b": "}"}}),
        ("\ufeff[\n\n", "json list", {}),
        ("[1, 2]", "json list", {}),
        ("a,b\n1,2\n", "csv", {"a": None, "b": None}),
    ],
)
def test_the_kind_of_a_file_shows_at_its_start(tmp_path: Path, content: str, kind: str, fields: dict[str, Any]) -> None:
    file = tmp_path / "log"
    file.write_text(content)
    assert (inspect(file, "a log").kind, inspect(file, "a log").first_row) == (kind, fields)


def test_a_long_first_element_of_a_list(tmp_path: Path) -> None:
    text = "x" * 300_000
    (tmp_path / "log.json").write_text(f'[{{"a": "{text}"}}, {{"b": 1}}]')
    assert inspect(tmp_path / "log.json", "a log").first_row == {"a": text}


def test_the_hash_of_a_file_is_that_of_its_content(write_rows: WriteRows) -> None:
    file = write_rows("x.jsonl", [ROW])
    assert read(file).sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_hash_of_a_folder_follows_names_and_contents(tmp_path: Path, write_rows: WriteRows) -> None:
    for folder in ("a", "b"):
        write_rows(f"{folder}/x.jsonl", [ROW])
    before = read(tmp_path / "a").sha256
    assert read(tmp_path / "b").sha256 == before
    (tmp_path / "b" / "x.jsonl").rename(tmp_path / "b" / "y.jsonl")
    assert read(tmp_path / "b").sha256 != before
    write_rows("a/x.jsonl", [{"id": 1, "correct": 0}])
    assert read(tmp_path / "a").sha256 != before


def test_a_subfolder_that_cannot_be_read_is_an_error(
    tmp_path: Path, write_rows: WriteRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows("run/x.jsonl", [ROW])
    locked = write_rows("run/locked/y.jsonl", [ROW]).parent
    scandir = os.scandir

    def refuse(folder: Any) -> Any:  # the tests may run as root, whom no permission stops
        if Path(folder) == locked:
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(LogError, match=r"run/locked: cannot be read \(Permission denied\); check its permissions"):
        read(tmp_path / "run")


def test_a_folder_names_its_tables_by_their_files(tmp_path: Path, write_rows: WriteRows) -> None:
    write_rows("run/b.jsonl", [ROW])
    write_rows("run/sub/a.jsonl", [ROW])
    assert [file.task for file in find(tmp_path / "run", "a log")] == ["b", "a"]
    assert [file.task for file in find(tmp_path / "run" / "b.jsonl", "a log")] == [""]
